"""``agent-runtime config``: check the workspace file, and let workers run under it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.core.policy import PolicyRule
    from runtime.kernel.tool_host import ToolHost
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
    findings += _policy(workspace, registry)
    findings += _own_queues(registry)
    return Checked(workspace, registry, tuple(findings))


def _errors(error: Exception) -> Iterator[Finding]:
    problems = getattr(error, "details", {}).get("problems") or [str(error)]
    yield from (Finding("error", str(problem)) for problem in problems)


def _policy(workspace: Workspace, registry: ToolRegistry) -> Iterator[Finding]:
    """Rules without effect, and tools that never run; of a lane only its own, since it is there to narrow."""
    from runtime.core.policy_check import find_dead_rules
    from runtime.errors import ConfigurationError
    from runtime.kernel.tool_host import ToolHost

    try:
        host = ToolHost(workspace, registry)
    except ConfigurationError as error:
        yield from _errors(error)
        return
    for lane_id in (None, *(lane.id for lane in workspace.file.lanes)):
        for dead in find_dead_rules(host.policy(lane_id)):
            if (dead.level == "lane") == (lane_id is not None):
                where = f"lane {lane_id!r}: " if lane_id is not None else ""
                yield Finding(dead.severity, where + dead.problem)
    yield from _closed_tools(host, workspace, registry)
    yield from _hidden_variables(workspace)


def _closed_tools(host: ToolHost, workspace: Workspace, registry: ToolRegistry) -> Iterator[Finding]:
    from runtime.core.policy import ON_TOOL_REQUEST
    from runtime.core.policy_check import find_closed_tools

    for name in find_closed_tools(host.policy(None), _names(registry), workspace.intents, ON_TOOL_REQUEST):
        text = f"no rule and no intent lets {name!r} run, whatever its input"
        yield Finding("warning", f"{text}; add it to an intent's allow_tools, or take its module out")


def _policy_rules(workspace: Workspace) -> Iterator[PolicyRule]:
    lanes = [lane.policies for lane in workspace.file.lanes if lane.policies is not None]
    for policies in (workspace.file.policies, *lanes):
        yield from policies.rules


def _hidden_variables(workspace: Workspace) -> Iterator[Finding]:
    """Rules about variables that hold a model's key or address, which no rule is shown."""
    from runtime.core.value_conditions import Environment

    for rule in _policy_rules(workspace):
        for part in rule.when.walk() if rule.when is not None else ():
            if isinstance(part, Environment) and part.comparison.name in workspace.secret_variables:
                text = f"rule {rule.id!r} asks about {part.comparison.name!r}, which is hidden from rules"
                yield Finding("error", f"{text}: it holds a model's key or address; ask about another one")


def _unknown_tools(workspace: Workspace, registry: ToolRegistry) -> Iterator[Finding]:
    """Policy rules about tools that nothing declares; servers of tools may bring them later."""
    from runtime.core.model import TURN_TOOL
    from runtime.core.policy_index import tool_names

    if workspace.tools.mcp_servers:
        return
    known = {TURN_TOOL, *_names(registry)}
    for rule in _policy_rules(workspace):
        for name in sorted(tool_names(rule.when) - known):
            text = f"rule {rule.id!r} is about {name!r}, which no tool module declares"
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
