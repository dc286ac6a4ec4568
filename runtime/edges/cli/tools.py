"""``agent-runtime tools``: what a context may call."""

from __future__ import annotations

from typing import Annotated

import typer

from runtime.edges.cli import options

group = typer.Typer(help="See what a context may call.", no_args_is_help=True)


@group.callback()
def tools() -> None:
    """See what a context may call."""


@group.command("list")
def list_(
    intent: Annotated[
        str | None, typer.Option(help="Under this intent; default: the union over all intents.")
    ] = None,
    lane: Annotated[str | None, typer.Option(help="In this lane.")] = None,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """List the tools that policy and scopes let through, with the loosest decision that an input may get."""
    from runtime.core.model import ExecutionContext
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_table
    from runtime.errors import InvalidInput
    from runtime.kernel.tool_host import ToolHost
    from runtime.settings import Settings
    from runtime.tools.registry import ToolRegistry
    from runtime.workspace import load_workspace

    loaded = load_workspace(Settings.load(workspace=workspace).workspace)
    if intent is not None and intent not in loaded.intents:
        known = ", ".join(loaded.intents) or "none"
        raise InvalidInput(f"--intent {intent!r} is not configured; agent_runtime.intents has {known}")
    registry = ToolRegistry()
    registry.load_modules(loaded.tools.modules, loaded.base_dir)
    metadata = {} if intent is None else {"agent_intent": intent}
    ctx = ExecutionContext(run_id="cli", task_id="cli", session_id="cli", lane_id=lane, metadata=metadata)
    listed = ToolHost(loaded, registry).list_governed_tools(ctx)
    if as_json:
        documents = [
            {
                "name": each.capability.name,
                "description": each.capability.description,
                "decision": each.decision.value,
                "depends_on_input": each.depends_on_input,
                "scopes": [scope.model_dump(mode="json", exclude_none=True) for scope in each.scopes],
                "input_schema": each.capability.input_schema,
            }
            for each in listed
        ]
        write_json({"intent": intent, "lane": lane, "tools": documents, "registered": len(registry)})
        return
    print_table(
        ("tool", "decision", "description"),
        (
            (
                each.capability.name,
                each.decision.value + (" (by input or intent)" if each.depends_on_input else ""),
                each.capability.description,
            )
            for each in listed
        ),
    )
