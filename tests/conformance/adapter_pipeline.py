"""Runs the product on records of pipeline.jsonl: real calls over a real kernel, engine and database.

What is answered is read back from outputs, listings and evidence.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import TypeAdapter, ValidationError

from runtime.agent_runtime import as_context
from runtime.core.model import Decision, ExecutionContext, Scope, ToolOutput
from runtime.core.policy import PolicyLayer
from runtime.core.scopes import RESERVED_ROOT
from runtime.errors import AgentRuntimeError, ErrorCode
from runtime.kernel.tool_host import GovernedTool, policy_context
from runtime.store.clock import Clock
from tests.conformance.pipeline_evidence import Evidence
from tests.harness.recorded import FailingCommits, Killed, Killer, RecordedStage, recorded_stage

PLACEHOLDER = "{{reserved_root}}"
LANE = "recorded"
RECONCILED = {"run_id": "run-1", "session_id": "recorded"}
APPROVER = "operator@example.com"
ALLOW = ({"policy_id": "p.allow", "decision": "allow"},)
LAYERS = ("workspace_allowed_scopes", "lane_allowed_scopes", "task_declared_scopes")
OURS = {"step_id", "recorded", "receipts", "warning"}
"""What the runtime adds to an output's metadata."""

_SCOPES: TypeAdapter[tuple[Scope, ...]] = TypeAdapter(tuple[Scope, ...])


def pipeline(given: dict[str, Any]) -> dict[str, Any]:
    """Play a record; the placeholder of the reserved directory is taken out, and put back."""
    text = json.dumps(given)
    modes = {"execute": _execute, "discover": _discover, "reconcile": _reconcile, "runtime": _run}
    answer = modes[given["mode"]](json.loads(text.replace(PLACEHOLDER, RESERVED_ROOT)))
    if PLACEHOLDER not in text:
        return answer
    found: dict[str, Any] = json.loads(json.dumps(answer).replace(RESERVED_ROOT, PLACEHOLDER))
    return found


# --- what a record gives --------------------------------------------------------------------------


def _workspace(context: Mapping[str, Any]) -> dict[str, Any]:
    """A workspace file whose scopes and lane are those of a context's layers."""
    workspace, lane, _ = _scope_layers(context)
    return {
        "security": {"allowed_scopes": workspace},
        "lanes": [{"id": LANE, "allowed_scopes": lane}],
        "policies": {"default_decision": "allow"},
    }


def _scope_layers(context: Mapping[str, Any]) -> list[list[Any]]:
    """Scopes of workspace, lane and task; a layer that the metadata do not give is the context's own."""
    metadata, own = context.get("metadata"), context.get("allowed_scopes")
    named = metadata if isinstance(metadata, dict) else {}
    given = [named[name] if _are_scopes(named.get(name)) else own for name in LAYERS]
    return [scopes if _are_scopes(scopes) else [] for scopes in given]


def _are_scopes(value: Any) -> bool:
    try:
        _SCOPES.validate_json(json.dumps(value))
    except ValidationError:
        return False
    return True


def _context(given: Mapping[str, Any]) -> dict[str, Any]:
    """A context that brings its task scopes; one that is malformed stays so."""
    context = {"session_id": "recorded", **given, "lane_id": LANE}
    if _are_scopes(given.get("allowed_scopes")):
        context["allowed_scopes"] = _scope_layers(given)[-1]
    return context


def _answers(given: Any) -> Sequence[Mapping[str, Any]]:
    """What the hook says of a tool; where a record says nothing, it allows."""
    return given if isinstance(given, list) else ALLOW


def _layer(policy: Any, tools: list[dict[str, Any]]) -> PolicyLayer:
    """The policy hook's answers as the rules of one layer."""
    by_tool = policy if isinstance(policy, dict) else {}
    rules = [
        {
            "id": answer["policy_id"],
            "decision": answer["decision"],
            "reason": answer.get("reason"),
            "when": {"tool_name_equals": name},
        }
        for name in dict.fromkeys(tool["name"] for tool in tools)
        for answer in _answers(by_tool.get(name, policy))
    ]
    return PolicyLayer.model_validate({"level": "workspace", "default_decision": "allow", "rules": rules})


# --- calls ----------------------------------------------------------------------------------------


def _execute(given: dict[str, Any]) -> dict[str, Any]:
    tools, faults = given["tools"], given.get("faults", {})
    layer = _layer(given.get("policy", "allow"), tools)
    with recorded_stage(_workspace(given["context"]), tools, [layer]) as stage:
        kinds = (
            ["tool_call_started"] if faults.get("persist_fails") else faults.get("append_trace_fails_for", [])
        )
        commits = FailingCommits(kinds)
        stage.opened.parts.database.crash = commits  # type: ignore[assignment]
        results = [_call(stage, each["tool"], each.get("input"), given["context"]) for each in given["calls"]]
        return {
            "results": results,
            "handler_calls": stage.notes.handled,
            "policy_calls": stage.notes.decided,
            "traces": Evidence(stage).traces(given),
            "trace_errors": commits.failed,
        }


def _call(stage: RecordedStage, tool: str, value: Any, context: Mapping[str, Any]) -> dict[str, Any]:
    stage.notes.reported = None
    try:
        output = stage.opened.execute_tool(tool, value, _context(context))
    except AgentRuntimeError as error:
        return {"raises": True, "message": str(error)}
    return _said(output, stage.notes.reported)


def _said(output: ToolOutput, reported: Any) -> dict[str, Any]:
    """An output in the form of the records.

    They know the details of two kinds of refusal and of what a handler reports; ours has more.
    """
    said: dict[str, Any] = {"success": output.success}
    if output.data is not None:
        said["data"] = output.data
    if output.error is not None:
        said["error"] = {"code": output.error.code, "message": output.error.message}
        own = isinstance(reported, dict) and (reported.get("error") or {}).get("code") == output.error.code
        if output.error.details and (
            own or output.error.code in (ErrorCode.SCOPE_DENIED, ErrorCode.APPROVAL_REQUIRED)
        ):
            said["error"]["details"] = output.error.details
    if metadata := {name: value for name, value in output.metadata.items() if name not in OURS}:
        said["metadata"] = metadata
    return said


# --- discovery ------------------------------------------------------------------------------------


def _discover(given: dict[str, Any]) -> dict[str, Any]:
    tools = given["tools"]
    layer = _layer(given.get("policy", "allow"), tools)
    with recorded_stage(_workspace(given["context"]), tools, [layer]) as stage:
        ctx = as_context(_context(given["context"]))
        listed = stage.opened.tool_host.list_governed_tools(ctx)
        return {
            "tools": [_listed(stage, ctx, each) for each in listed],
            "policy_calls": stage.notes.decided,
            "trace_count": len(Evidence(stage).receipts()),
        }


def _listed(stage: RecordedStage, ctx: ExecutionContext, found: GovernedTool) -> dict[str, Any]:
    asked = policy_context(ctx, found.capability.name, None, ctx.metadata)
    return {
        "name": found.capability.name,
        "decision": found.decision.value,
        "policy_decisions": stage.policy.matching(asked),
        "scope_enforced": [scope.model_dump(exclude_none=True) for scope in found.scopes],
    }


# --- start-up after a crash -----------------------------------------------------------------------

LONG_AGO_MS = 1_700_000_000_000
"""When the process that died had made its calls."""

ENDS: dict[str, dict[str, Any]] = {
    "success": {"returns": {"success": True}},
    "failure": {"raises": "it failed"},
    "denied": {"returns": {"success": False, "error": {"code": ErrorCode.SCOPE_DENIED, "message": "no"}}},
    "crashed": {"returns": {"success": True}},
}
"""What a handler does in a call that ends so; one that crashed did not come to record it."""


def _reconcile(given: dict[str, Any]) -> dict[str, Any]:
    """Have a process make the calls and die in those that do not end; then start up twice.

    What a process was writing when it died left nothing behind: its transaction was rolled back. Calls that
    are recorded as crashed were finished by a start-up before.
    """
    ends = _ends(given["entries"])
    tools = [{"name": f"recorded:{end}", "handler": does} for end, does in ENDS.items()]
    with recorded_stage(
        {}, tools, [PolicyLayer(level="workspace", default_decision=Decision.ALLOW)]
    ) as stage:
        numbers = _make_calls(stage, {number: end for number, end in ends.items() if end is not None})
        numbers |= _make_calls(stage, {number: "crashed" for number, end in ends.items() if end is None})
        first, second = _start_up(stage), _start_up(stage)
    return {
        "reconciled": len(first),
        "reconciled_again": len(second),
        "appended": [{"receipt": numbers[each["step_id"]], **_finish(each)} for each in first],
    }


def _ends(entries: list[dict[str, Any]]) -> dict[int, str | None]:
    """How each call ended, by its number, in the order of the starts; None if it did not."""
    ends: dict[int, str | None] = {
        each["receipt"]: None for each in entries if each["kind"] == "tool_call_started"
    }
    for each in entries:
        if each["kind"] == "tool_call_finished" and each["receipt"] in ends:
            ends[each["receipt"]] = each.get("result", "success")
    return ends


def _make_calls(stage: RecordedStage, ends: Mapping[int, str]) -> dict[str, int]:
    """Make calls in a process of long ago, whose leases have run out since; returns their numbers by step."""
    runtime = stage.restart()
    alive = runtime.parts.database.crash
    numbers: dict[str, int] = {}
    for place, (number, end) in enumerate(ends.items()):
        runtime.parts.database.clock = Clock(LONG_AGO_MS + place)
        runtime.parts.database.crash = Killer() if end == "crashed" else alive  # type: ignore[assignment]
        with suppress(Killed):
            runtime.execute_tool(f"recorded:{end}", {}, {**RECONCILED, "task_id": f"task-{number}"})
        numbers[Evidence(stage).receipts()[-1]["step_id"]] = number
    return numbers


def _start_up(stage: RecordedStage) -> list[dict[str, Any]]:
    """Open the runtime anew; returns the receipts that this adds."""
    before = len(Evidence(stage).receipts())
    stage.restart()
    return Evidence(stage).receipts()[before:]


def _finish(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **{name: body[name] for name in ("kind", "result", "duration_ms")},
        "policy_decisions": [each["decision"] for each in body["policy_decisions"]],
    }


# --- a runtime through its life -------------------------------------------------------------------


@dataclass(slots=True)
class _Life:
    """A runtime in use: the requests that its calls led to, and what became of its workspace file."""

    given: Mapping[str, Any]
    stage: RecordedStage
    requests: list[str] = field(default_factory=list)

    def step(self, step: Mapping[str, Any]) -> dict[str, Any]:
        """Take one step."""
        try:
            return self._taken(step)
        except AgentRuntimeError as error:
            return {"raises": True, "message": str(error)}

    def _taken(self, step: Mapping[str, Any]) -> dict[str, Any]:
        path = self.stage.path
        match step["op"]:
            case "execute":
                return self._execute(step)
            case "resolve_approval":
                return self._resolve(step)
            case "edit_workspace":
                path.write_text(json.dumps(_named(self.given, step["name"])), encoding="utf-8")
            case "reformat_workspace":
                content = json.loads(path.read_text("utf-8"))
                path.write_text("# as before\n" + json.dumps(content, indent=4) + "\n", encoding="utf-8")
            case "delete_workspace":
                path.unlink(missing_ok=True)
            case "restart":
                self.stage.restart()
        return {"ok": True}

    def _execute(self, step: Mapping[str, Any]) -> dict[str, Any]:
        name = self.given["tool"]["name"]
        result = _call(self.stage, name, step.get("input", {}), self.given["context"])
        if result.get("error", {}).get("code") != ErrorCode.APPROVAL_REQUIRED:
            return result
        details = result["error"]["details"]
        self.requests.append(details["request_id"])
        result["error"]["details"] = {
            key: value for key, value in details.items() if key != "policy_decisions"
        }
        return {**result, "request_index": len(self.requests) - 1}

    def _resolve(self, step: Mapping[str, Any]) -> dict[str, Any]:
        index = step["request_index"]
        answer = self.stage.opened.resolve_approval(
            request_id=self.requests[index] if index < len(self.requests) else "unknown",
            approved=step["approved"],
            approved_by=step.get("approved_by", APPROVER),
            reason=step.get("reason"),
        )
        parked = next(each for each in self._parked() if self._asked(each) == answer.request_id)
        resolved = {
            "request_id": "$request",
            "approved": answer.approved,
            "task_id": parked["task_id"],
            "run_id": parked["run_id"],
        }
        return {**resolved, "result_keys": sorted(resolved)}

    def _parked(self) -> list[dict[str, Any]]:
        return [each for each in Evidence(self.stage).receipts() if self._asked(each) is not None]

    def _asked(self, body: Mapping[str, Any]) -> Any:
        """The approval request that a receipt's call was parked for."""
        error = Evidence(self.stage).value(body, "error")
        if error is None or error["code"] != ErrorCode.APPROVAL_REQUIRED:
            return None
        return error["details"]["request_id"]

    def events(self) -> Iterator[dict[str, Any]]:
        """What happened to the task and its workspace, with the names of its fields."""
        tasks: dict[str, str] = {}
        for body in Evidence(self.stage).receipts(control=True):
            event = self._event(body, tasks)
            if event is not None:
                shown = {name: event[name] for name in ("kind", "task_id", "wait_for") if name in event}
                yield {**shown, "fields": sorted(event)}

    def _event(self, body: Mapping[str, Any], tasks: dict[str, str]) -> dict[str, Any] | None:
        """A receipt as an event of the records; None if they know none such."""
        common = {"schema_version": 1, "timestamp": body.get("at")}
        if body["kind"] == "spec_tampered":
            details = body["details"]
            hashes = {"expected_hash": details["expected"], "actual_hash": details["actual"]}
            return {**common, **hashes, "kind": "spec_tampered", "spec": "workspace", "id": details["path"]}
        if body["kind"] == "approval_resolved":
            task = {**common, "task_id": tasks[body["request_id"]]}
            if body["status"] == "approved":
                return {**task, "kind": "task_resumed"}
            return {**task, "kind": "task_blocked", "reason": body["reason"]}
        asked = self._asked(body)
        if asked is None:
            return None
        tasks[asked] = body["task_id"]
        wait_for = f"$request_{self.requests.index(asked)}"
        reason = Evidence(self.stage).value(body, "error")["message"]
        return {
            **common,
            "kind": "task_waiting",
            "task_id": body["task_id"],
            "wait_for": wait_for,
            "reason": reason,
        }


def _named(given: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The workspace file with a name in it: that of a lane which no call uses."""
    content = _workspace(given["context"])
    content["lanes"].append({"id": f"name-{name}"})
    return content


def _run(given: dict[str, Any]) -> dict[str, Any]:
    layers = [PolicyLayer.model_validate(layer) for layer in given["policy_layers"]]
    with recorded_stage(_named(given, "One"), [given["tool"]], layers) as stage:
        life = _Life(given, stage)
        results = [life.step(step) for step in given["steps"]]
        traces = Evidence(stage).traces({**given, "tools": [given["tool"]]})
        return {
            "results": results,
            "events": list(life.events()),
            "traces": [
                {name: each[name] for name in ("receipt", "kind", "result") if name in each}
                for each in traces
            ],
            "handler_call_count": len(stage.notes.handled),
        }
