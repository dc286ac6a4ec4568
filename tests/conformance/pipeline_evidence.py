"""Reads evidence back, and writes receipts down in the form of the records of pipeline.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.harness.recorded import RecordedStage


@dataclass(frozen=True, slots=True)
class Evidence:
    """Reads receipts in the order in which they were written."""

    stage: RecordedStage

    def receipts(self, *, control: bool = False) -> list[dict[str, Any]]:
        """The bodies of receipts; those that belong to no step, if asked for."""
        rows = self.stage.rows(
            "SELECT CAST(body AS TEXT) AS body FROM evidence ORDER BY transaction_id, position"
        )
        bodies = [json.loads(row.body) for row in rows]
        return [body for body in bodies if control or body["step_id"] != "control"]

    def value(self, body: Mapping[str, Any], name: str) -> Any:
        """What a receipt cites under a name, inline or as a blob."""
        if name in body or f"{name}_hash" not in body:
            return body.get(name)
        rows = self.stage.rows(
            "SELECT CAST(content AS TEXT) AS content FROM blob WHERE hash = :hash", hash=body[f"{name}_hash"]
        )
        return json.loads(rows[0].content)

    def traces(self, given: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Receipts in full."""
        numbers: dict[str, int] = {}
        found = []
        for body in self.receipts():
            number = numbers.setdefault(body["step_id"], len(numbers))
            found.append({"receipt": number, "kind": body["kind"], **self._trace(body, given)})
        return found

    def _trace(self, body: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
        match body["kind"]:
            case "tool_call_started":
                return _started(body, given)
            case "tool_call_progress":
                snapshot = self.value(body, "snapshot")
                place = {name: snapshot[name] for name in ("sequence", "state")}
                return {**place, "snapshot_hash": body["snapshot_hash"]}
        named = ("result", "output_hash", "artifacts_written")
        decisions = [_decision(each) for each in body["policy_decisions"]]
        return {**{name: body[name] for name in named if name in body}, "policy_decisions": decisions}


def _started(body: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    named = ("tool_name", "run_id", "task_id", "session_id", "execution_mode", "input_hash")
    scopes = ("scope_requested", "scope_allowed", "scope_enforced")
    trace = {name: body[name] for name in (*named, *scopes)}
    if "session_id" not in given["context"]:
        del trace["session_id"]  # ours has one always
    # Ours knows no packs: what a record says of them, and its reference files with each call, is repeated.
    tool = next((each for each in given["tools"] if each["name"] == body["tool_name"]), {})
    if tool.get("handler", {}).get("subprocess"):
        trace["execution_mode"] = "subprocess"
    metadata = given["context"].get("metadata") or {}
    trace["pack_id"] = tool.get("pack", "demo") or metadata.get("pack_id")
    if "pack_version" in metadata:
        trace["pack_version"] = metadata["pack_version"]
    return {name: value for name, value in trace.items() if value is not None}


def _decision(decision: dict[str, Any]) -> dict[str, Any]:
    """A matched rule; the kernel's own words are left out, as in the records."""
    if not decision["policy_id"].startswith("kernel."):
        return decision
    return {name: decision[name] for name in ("policy_id", "decision")}
