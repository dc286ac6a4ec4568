"""``agent-runtime dev``: the whole stack in the foreground for one's own workspace file."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

MAX_RESTARTS = 5


def dev(
    workspace: Annotated[
        Path | None, typer.Option(help="The workspace file; default: workspace.yaml.")
    ] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where state is kept; default: .agent-runtime.")
    ] = None,
    redis_port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port of the embedded Valkey; default: a free one.")
    ] = None,
) -> None:
    """Run Valkey, two workers and beat for your workspace file until Ctrl-C; state is kept."""
    from rich.console import Console

    from runtime.edges.cli.console import LogFiles, note, stoppable
    from runtime.edges.embedded import EmbeddedValkey, activate, running_stack, stack_commands
    from runtime.edges.shadowing import refuse_shadowed_modules
    from runtime.edges.supervisor import ChildFailed
    from runtime.settings import Settings

    refuse_shadowed_modules()
    settings = Settings.load(workspace=workspace, state_dir=state_dir)
    valkey: EmbeddedValkey | None = None
    try:
        with stoppable(), ExitStack() as stack:
            sink = stack.enter_context(LogFiles(settings.state_dir / "logs", Console()))
            if settings.redis_url is None:
                valkey = EmbeddedValkey(
                    settings.state_dir, port=redis_port, sink=sink, max_restarts=MAX_RESTARTS
                )
                stack.enter_context(valkey)
                settings = Settings.load(workspace=workspace, state_dir=state_dir, redis_url=valkey.url)
            activate(settings)
            supervisor = stack.enter_context(
                running_stack(stack_commands(settings), sink, max_restarts=MAX_RESTARTS)
            )
            note(f"ready: {settings.workspace} with state in {settings.state_dir}; Ctrl-C stops")
            while (failure := supervisor.failure(timeout=1.0)) is None:
                if valkey is not None:
                    valkey.check()
    except KeyboardInterrupt:
        note("stopped; state is kept")
        return
    raise ChildFailed(str(failure))
