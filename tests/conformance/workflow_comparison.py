"""What counts in an answer to a record of workflow.jsonl, and what the records' README leaves open.

Left open are: the order of calls of different nodes, the numbers and most of the order of continuations,
assistant messages, and the text of a tool message beside the JSON that it says.
"""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

ORDERED = ("scheduled", "suspended", "approval_required", "error", "branch_completed")
"""Kinds of continuation whose order counts, node by node."""


def comparable(step: dict[str, Any]) -> dict[str, Any]:
    """One step's answer in a form in which equal means conforming."""
    answer = {"result": _result(step["result"]), "calls": _calls(step["calls"])}
    if "state" in step:
        answer["state"] = None if step["state"] is None else _state(step["state"])
    return answer


def as_listed(expected: dict[str, Any], actual: dict[str, Any]) -> dict[str, Any]:
    """The actual answer without an error's words where the record does not give any."""
    wanted, result = expected["result"].get("error"), dict(actual["result"])
    if isinstance(wanted, dict) and isinstance(result.get("error"), dict):
        result["error"] = {name: value for name, value in result["error"].items() if name in wanted}
    return {**actual, "result": result}


def _result(result: dict[str, Any]) -> dict[str, Any]:
    if "messages" not in result:
        return result
    return {**result, "messages": [_message(each) for each in result["messages"] if _counts(each["role"])]}


def _message(message: dict[str, Any]) -> dict[str, Any]:
    if message["role"] != "tool":
        return message
    return {**message, "content": json.loads(message["content"])}


def _counts(role: str) -> bool:
    return role != "assistant"


def _roles(entry: dict[str, Any]) -> dict[str, Any]:
    if "message_roles" not in entry:
        return entry
    return {**entry, "message_roles": [role for role in entry["message_roles"] if _counts(role)]}


def _calls(calls: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_node: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for call in calls:
        by_node[call["node"]].append(_roles(call))
    return dict(by_node)


def _state(state: dict[str, Any]) -> dict[str, Any]:
    continuations = state["continuations"]
    ordered: dict[str, list[str]] = defaultdict(list)
    for each in continuations:
        if each["kind"] in ORDERED:
            ordered[each.get("node_id", "")].append(each["kind"])
    answer = {
        **state,
        "continuations": sorted(
            [each["kind"], each.get("node_id", ""), each.get("request_id", ""), each["timestamp"]]
            for each in continuations
        ),
        "ordered": dict(ordered),
        "gapless": [each.get("sequence") for each in continuations] == list(range(len(continuations))),
    }
    if "nodes" in state:
        answer["nodes"] = [_roles(node) for node in state["nodes"]]
    return answer
