"""``agent-runtime config``: check the workspace file, and let workers run under it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.settings import Settings
    from runtime.tools.registry import ToolRegistry
    from runtime.workspace import Workspace

group = typer.Typer(help="Check the workspace file, and let workers run under it.", no_args_is_help=True)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong in a workspace file; an ``error`` keeps it from being activated."""

    severity: Literal["error", "warning"]
    text: str


@dataclass(frozen=True, slots=True)
class Checked:
    """A workspace file with all that a check found.

    Attributes:
        workspace: The file; ``None`` if it could not be loaded.
        registry: The tools of the modules that could be loaded.
        findings: Errors and warnings.
    """

    workspace: Workspace | None
    registry: ToolRegistry
    findings: tuple[Finding, ...]

    @property
    def good(self) -> bool:
        """Whether there is no error among the findings."""
        return all(finding.severity != "error" for finding in self.findings)


@group.command()
def check(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Check the workspace file, its tools and its policies; print all that is wrong."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_lines
    from runtime.settings import Settings

    settings = Settings.load(workspace=workspace)
    checked = check_workspace(settings)
    if as_json:
        write_json(
            {
                "workspace": str(settings.workspace.absolute()),
                "hash": checked.workspace and checked.workspace.hash,
                "ok": checked.good,
                "tools": [tool.name for tool in checked.registry],
                "problems": [{"severity": each.severity, "text": each.text} for each in checked.findings],
            }
        )
    else:
        for finding in checked.findings:
            print_lines(*f"{finding.severity}: {finding.text}".split("\n"))
        if checked.good and checked.workspace is not None:
            print_lines(
                f"{checked.workspace.path} is good: {len(checked.registry)} tools",
                f"its hash is {checked.workspace.hash}",
            )
    if not checked.good:
        raise typer.Exit(1)


@group.command()
def activate(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Let workers run under this workspace file; the one before it stays active for the rollout."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import print_lines
    from runtime.errors import ConfigurationError
    from runtime.settings import Settings
    from runtime.store import workspaces

    settings = Settings.load(workspace=workspace)
    checked = check_workspace(settings)
    if not checked.good or checked.workspace is None:
        errors = [finding.text for finding in checked.findings if finding.severity == "error"]
        raise ConfigurationError("\n".join(errors), details={"problems": errors})
    found = checked.workspace
    with open_database(settings) as database:
        active = workspaces.activate(database, found.hash, str(found.path))
    if as_json:
        write_json({"workspace": str(found.path), "hash": found.hash, "active": active})
    else:
        others = ", ".join(each[:16] for each in active if each != found.hash)
        also = f"; {others} stays active until the next one" if others else ""
        print_lines(f"{found.path} is active as {found.hash[:16]}{also}")


# --- checking -------------------------------------------------------------------------------------


def check_workspace(settings: Settings) -> Checked:
    """Load a workspace file with its tools, and look for what can never work."""
    from runtime.errors import ConfigurationError
    from runtime.tools.registry import ToolRegistry
    from runtime.workspace import load_workspace

    registry = ToolRegistry()
    try:
        workspace = load_workspace(settings.workspace)
    except ConfigurationError as error:
        return Checked(None, registry, tuple(_errors(error)))
    findings: list[Finding] = []
    for module in workspace.tools.modules:
        try:
            registry.load_modules([module], workspace.base_dir)
        except ConfigurationError as error:
            findings += _errors(error)
    if not findings:
        # With a module missing, each of its tools would be reported as well.
        try:
            workspace.check_tools([tool.name for tool in registry])
        except ConfigurationError as error:
            findings += _errors(error)
        findings += _unknown_tools(workspace, registry)
    findings += _dead_rules(workspace, registry)
    findings += _own_queues(registry)
    return Checked(workspace, registry, tuple(findings))


def _errors(error: Exception) -> Iterator[Finding]:
    problems = getattr(error, "details", {}).get("problems") or [str(error)]
    yield from (Finding("error", str(problem)) for problem in problems)


def _dead_rules(workspace: Workspace, registry: ToolRegistry) -> Iterator[Finding]:
    """Rules without effect; of a lane only its own, since to narrow the others is what it is for."""
    from runtime.core.policy import find_dead_rules
    from runtime.kernel.tool_host import ToolHost

    host = ToolHost(workspace, registry)
    for lane_id in (None, *(lane.id for lane in workspace.file.lanes)):
        for dead in find_dead_rules(host.policy(lane_id)):
            if (dead.level == "lane") == (lane_id is not None):
                where = f"lane {lane_id!r}: " if lane_id is not None else ""
                yield Finding(dead.severity, where + dead.problem)


def _unknown_tools(workspace: Workspace, registry: ToolRegistry) -> Iterator[Finding]:
    """Policy rules about tools that nothing declares; servers of tools may bring them later."""
    from runtime.core.conditions import ToolNameEquals
    from runtime.core.model import TURN_TOOL

    if workspace.tools.mcp_servers:
        return
    lanes = [lane.policies for lane in workspace.file.lanes if lane.policies is not None]
    for policies in (workspace.file.policies, *lanes):
        for rule in policies.rules:
            for part in rule.when.walk() if rule.when is not None else ():
                if isinstance(part, ToolNameEquals) and part.tool_name not in (TURN_TOOL, *_names(registry)):
                    text = f"rule {rule.id!r} is about {part.tool_name!r}, which no tool module declares"
                    yield Finding("warning", f"{text}; correct the name, or add the module")


def _own_queues(registry: ToolRegistry) -> Iterator[Finding]:
    """Queues that tools name for themselves, which a worker consumes only if it is told to."""
    from runtime.live.celery_settings import QUEUES

    own: dict[str, list[str]] = {}
    for tool in registry:
        if tool.queue not in QUEUES:
            own.setdefault(tool.queue, []).append(tool.name)
    for queue, names in own.items():
        text = f"calls of {', '.join(names)} run on queue {queue!r}, which no worker consumes unasked"
        yield Finding("warning", f"{text}; start one with 'agent-runtime worker -Q {queue}'")


def _names(registry: ToolRegistry) -> Iterator[str]:
    return (tool.name for tool in registry)
