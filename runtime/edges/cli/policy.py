"""``agent-runtime policy``: why a call is decided as it is, and what another workspace file would decide."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.core.explain import Explanation, LayerTrace, RuleTrace
    from runtime.core.policy import PolicyResult
    from runtime.kernel.replay import Replayed
    from runtime.kernel.tool_host import ToolHost
    from runtime.kernel.verdict import Call

group = typer.Typer(help="See why policy decides as it does, and try a change.", no_args_is_help=True)

Tool = Annotated[str, typer.Argument(metavar="TOOL", help="A tool's name.")]
Intent = Annotated[str | None, typer.Option(help="The turn's intent.")]
Input = Annotated[str, typer.Option("--input", metavar="JSON", help="The tool's input.")]
Lane = Annotated[str | None, typer.Option(help="In this lane.")]
Metadata = Annotated[str, typer.Option(metavar="JSON", help="The context's metadata, an object.")]
At = Annotated[str | None, typer.Option(metavar="INSTANT", help="Decide as at this instant (RFC 3339).")]
Count = Annotated[int, typer.Option(min=0)]


@group.callback()
def policy() -> None:
    """See why policy decides as it does, and try a change."""


@group.command()
def explain(
    tool: Tool,
    intent: Intent = None,
    input_text: Input = "{}",
    lane: Lane = None,
    metadata: Metadata = "{}",
    at: At = None,
    turn: Count = 0,
    tool_calls: Count = 0,
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Show which rules match a call in which layer, which take effect, and why."""
    from runtime.core.explain import explain as explained
    from runtime.edges.cli.console import note, write_json

    host = _open_host(workspace)
    if host.registry.get(tool) is None:
        note(f"no tool module declares {tool!r}, so a call of it is refused before policy is asked")
    call = _call(
        tool=tool,
        input=_json(input_text, "--input"),
        intent=intent,
        lane=lane,
        metadata=_object(metadata, "--metadata"),
        now=_instant(at, "--at"),
        turn=turn,
        tool_calls=tool_calls,
    )
    found = explained(host.policy(lane), host.policy_context(call))
    result = host.judge(call)
    if as_json:
        rules = [_layer_document(layer) for layer in found.layers]
        write_json(
            {"tool": tool, "decision": result.decision, "layers": rules, "decisions": result.decisions}
        )
    else:
        _print_explanation(tool, found, result)


@group.command("test")
def check_cases(
    cases: Annotated[Path, typer.Argument(metavar="CASES", help="A YAML file with the key 'cases'.")],
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Decide the calls of a file, and fail where one is not decided as it says."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.policy_cases import read_cases
    from runtime.edges.cli.show import print_lines

    host = _open_host(workspace)
    outcomes = []
    for number, case in enumerate(read_cases(cases), 1):
        call = _call(
            tool=case.tool,
            input=case.input,
            intent=case.intent,
            lane=case.lane,
            metadata=case.metadata,
            now=_instant(case.at, f"{cases}: case {number}: at"),
            turn=case.turn,
            tool_calls=case.tool_calls,
        )
        result = host.judge(call)
        matched = [each["policy_id"] for each in result.decisions]
        good = result.decision == case.expect and (case.rule is None or case.rule in matched)
        outcomes.append((case.name or f"case {number}", good, case, result, matched))
    failed = [outcome for outcome in outcomes if not outcome[1]]
    if as_json:
        documents = [
            {"name": name, "ok": good, "expected": case.expect, "decision": result.decision, "rules": matched}
            for name, good, case, result, matched in outcomes
        ]
        write_json({"cases": documents, "failed": len(failed)})
    else:
        for name, _, case, result, matched in failed:
            wanted = case.expect if case.rule is None else f"{case.expect} by {case.rule}"
            rules = ", ".join(matched) or "no rule"
            print_lines(f"FAILED {name}: {case.tool} is {result.decision} ({rules}), expected {wanted}")
        print_lines(f"{len(outcomes) - len(failed)} of {len(outcomes)} cases are decided as expected")
    if failed:
        raise typer.Exit(1)


@group.command("replay")
def replay_(
    since: Annotated[
        str, typer.Option(metavar="INSTANT", help="Calls that started at or after it (RFC 3339).")
    ],
    workspace: options.Workspace = None,
    as_json: options.Json = False,
) -> None:
    """Decide recorded calls again under a workspace file, and show what would differ."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import local, print_lines, print_table
    from runtime.kernel.replay import replay
    from runtime.store.replaying import recorded_calls

    host = _open_host(workspace)
    start = _instant(since, "--since")
    decided, skipped, differing = 0, 0, []
    with open_database() as database:
        for recorded in recorded_calls(database, start):
            found = replay(host, recorded)
            if found is None:
                skipped += 1
                continue
            decided += 1
            if found.differs:
                differing.append(found)
    if as_json:
        documents = [_replayed_document(each) for each in differing]
        write_json({"decided": decided, "skipped": skipped, "differing": documents})
        return
    print_table(
        ("started", "session", "tool", "was", "would be", "rules"),
        (
            (
                local(each.recorded.at),
                each.recorded.session_id,
                each.recorded.tool_name,
                each.before.value,
                each.after.value,
                ", ".join(rule["policy_id"] for rule in each.decisions) or "none",
            )
            for each in differing
        ),
    )
    print_lines(
        f"{len(differing)} of {decided} calls would be decided differently; "
        f"{skipped} were never decided by policy, or their input is gone"
    )


# --- asking ---------------------------------------------------------------------------------------


def _open_host(workspace: Path | None) -> ToolHost:
    from runtime.kernel.tool_host import ToolHost
    from runtime.settings import Settings
    from runtime.tools.registry import ToolRegistry
    from runtime.workspace import load_workspace

    loaded = load_workspace(Settings.load(workspace=workspace).workspace)
    registry = ToolRegistry()
    registry.load_modules(loaded.tools.modules, loaded.base_dir)
    return ToolHost(loaded, registry)


def _call(
    *,
    tool: str,
    input: Any,
    intent: str | None,
    lane: str | None,
    metadata: dict[str, Any],
    now: int,
    turn: int,
    tool_calls: int,
) -> Call:
    from runtime.core.model import ExecutionContext
    from runtime.kernel.verdict import Call

    return Call(
        tool_name=tool,
        input=input,
        ctx=ExecutionContext(
            run_id="cli", task_id="cli", session_id="cli", lane_id=lane, metadata=metadata
        ),
        session_id="cli",
        node_id="cli",
        step_id="cli",
        call_id="cli",
        intent=intent,
        turn_index=turn,
        tool_calls=tool_calls,
        now=now,
    )  # fmt: skip


def _json(text: str, name: str) -> Any:
    from runtime.core.canonical import parse_json
    from runtime.errors import InvalidInput

    try:
        return parse_json(text)
    except InvalidInput as error:
        raise InvalidInput(f"{name}: {error}") from None


def _object(text: str, name: str) -> dict[str, Any]:
    from runtime.errors import InvalidInput

    found = _json(text, name)
    if not isinstance(found, dict):
        raise InvalidInput(f'{name} {text!r} is no JSON object; write e.g. \'{{"role": "guest"}}\'')
    return found


def _instant(text: str | None, name: str) -> int:
    """Milliseconds since the epoch; now where nothing is given."""
    from runtime.errors import InvalidInput

    if text is None:
        return round(datetime.now(UTC).timestamp() * 1000)
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise InvalidInput(f"{name} {text!r} is no instant; write e.g. 2026-01-31T08:00:00Z")
    return round(found.timestamp() * 1000)


# --- showing --------------------------------------------------------------------------------------


def _print_explanation(tool: str, found: Explanation, result: PolicyResult) -> None:
    from runtime.edges.cli.show import print_lines

    for layer in found.layers:
        print_lines(f"{layer.level} layer" + (" (may loosen)" if layer.allow_loosening else ""))
        shown = [rule for rule in layer.rules if rule.matched is not False]
        for rule in shown:
            print_lines(*_rule_lines(rule))
        others = len(layer.rules) - len(shown)
        if others:
            print_lines(f"  {others} {'rule does' if others == 1 else 'rules do'} not match")
    if result.decision is not found.decision:
        said = result.decisions[-1]
        print_lines(
            f"entry point {said['policy_id']}: {said['decision']} – {said.get('reason', 'no reason')}"
        )
    print_lines(f"{tool}: {result.decision}")


def _rule_lines(rule: RuleTrace) -> Iterator[str]:
    name = "default" if rule.id is None else rule.id
    mark = "*" if rule.took_effect else "-"
    yield f"  {mark} {name}: {rule.decision} – {rule.why}; {rule.effective} after it"
    if rule.reason:
        yield f"      says: {rule.reason}"
    for reason in rule.conditions:
        holds = {True: "holds", False: "does not hold", None: "cannot be told"}[reason.holds]
        yield f"      {reason.condition} {holds}"


def _layer_document(layer: LayerTrace) -> dict[str, Any]:
    document = asdict(layer)
    for rule in document["rules"]:
        for condition in rule["conditions"]:
            condition["condition"] = json.loads(condition["condition"])
    return document


def _replayed_document(found: Replayed) -> dict[str, Any]:
    from runtime.edges.cli.show import rfc3339

    recorded = found.recorded
    return {
        "step_id": recorded.step_id,
        "session_id": recorded.session_id,
        "tool": recorded.tool_name,
        "started_at": rfc3339(recorded.at),
        "before": found.before,
        "after": found.after,
        "decisions": found.decisions,
    }
