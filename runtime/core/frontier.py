"""What becomes of a node once everything that it waits for has ended. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from runtime.core.durations import milliseconds
from runtime.core.graph import MAX_INSTANCES, wake_time
from runtime.core.model import ForEach, NodeStatus, When, WorkflowNode
from runtime.errors import ErrorCode, InvalidInput


@dataclass(frozen=True, slots=True)
class Upstream:
    """A node that another one waited for, at its end.

    Attributes:
        id: Its id.
        status: How it ended.
        result: Data of its last turn; for a group ``{"items": [...]}``.
        instance: Whether it is an instance of the node that waits.
    """

    id: str
    status: NodeStatus
    result: Any = None
    instance: bool = False


@dataclass(frozen=True, slots=True)
class Start:
    """The node may start, at once or when it is due (milliseconds since the epoch)."""

    due: int | None = None


@dataclass(frozen=True, slots=True)
class Skip:
    """The node is skipped: ``when`` its condition is false, ``upstream`` all it depends on was skipped."""

    reason: str


@dataclass(frozen=True, slots=True)
class Expand:
    """The node runs once for each item."""

    items: tuple[Any, ...]
    due: int | None = None


@dataclass(frozen=True, slots=True)
class Finish:
    """The group is complete."""

    result: Any


@dataclass(frozen=True, slots=True)
class Fail:
    """The group cannot run, or an instance of it failed."""

    code: str
    message: str


Move = Start | Skip | Expand | Finish | Fail


def next_move(node: WorkflowNode | None, upstream: Sequence[Upstream], *, expanded: bool, now: int) -> Move:
    """Decide about a node none of whose dependencies is open.

    Args:
        node: Its definition; ``None`` for a plain node.
        upstream: What it depended on; for a group that runs also its instances, in order.
        expanded: Whether it is a group whose instances exist.
        now: Milliseconds since the epoch.
    """
    if expanded:
        assert node is not None
        return _join(node, [each for each in upstream if each.instance])
    if node is not None and node.when:
        ended = {each.id: each for each in upstream}
        if not all(_holds(condition, ended[condition.node]) for condition in node.when):
            return Skip("when")
    elif upstream and all(each.status is NodeStatus.SKIPPED for each in upstream):
        return Skip("upstream")
    if node is None:
        return Start()
    due = due_time(node, now)
    if node.for_each is None:
        return Start(due)
    try:
        items = _items(node, upstream)
    except InvalidInput as error:
        return Fail(ErrorCode.INVALID_OUTPUT, str(error))
    return Expand(items, due) if items else Finish({"items": []})


def due_time(node: WorkflowNode, now: int) -> int | None:
    """When a node may start that could start now; ``None`` for at once."""
    if node.wake_at is not None:
        return wake_time(node.id, node.wake_at)
    return None if node.wake_after is None else now + milliseconds(node.wake_after)


def _holds(condition: When, ended: Upstream) -> bool:
    if ended.status not in condition.status:
        return False
    if condition.intent is None:
        return True
    return isinstance(ended.result, Mapping) and ended.result.get("intent") in condition.intent


def _join(node: WorkflowNode, instances: Sequence[Upstream]) -> Move:
    failed = [each.id for each in instances if each.status is NodeStatus.ERROR]
    if failed and node.on_error == "fail":
        return Fail(
            ErrorCode.TOOL_EXECUTION_FAILED,
            f"{len(failed)} of {len(instances)} instances of node {node.id!r} failed: "
            f"{', '.join(failed[:5])}",
        )
    return Finish({"items": [each.result for each in instances]})


def _items(node: WorkflowNode, upstream: Sequence[Upstream]) -> tuple[Any, ...]:
    if not isinstance(node.for_each, ForEach):
        return node.for_each or ()
    source = node.for_each
    value = structured_output(next(each for each in upstream if each.id == source.node))
    where = f"for_each of node {node.id!r}: the output of {source.node!r}"
    for key in source.path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            raise InvalidInput(
                f"{where} has nothing at {list(source.path)}; let the node answer with JSON of that form"
            ) from None
    if not isinstance(value, list):
        raise InvalidInput(f"{where} is no list at {list(source.path)}, but {type(value).__name__}")
    if len(value) > MAX_INSTANCES:
        raise InvalidInput(
            f"{where} lists {len(value)} items; at most {MAX_INSTANCES} run, so split the list"
        )
    return tuple(value)


def structured_output(ended: Upstream) -> Any:
    """What a node's last message says as JSON; a group's list of such outputs is under ``items``.

    Raises:
        InvalidInput: If the message is not JSON.
    """
    if not isinstance(ended.result, Mapping):
        raise InvalidInput(f"node {ended.id!r} has no output; it ended as {ended.status}")
    if "items" in ended.result and "assistant_message" not in ended.result:
        return ended.result
    try:
        return json.loads(ended.result.get("assistant_message") or "", parse_constant=_not_json)
    except ValueError:
        raise InvalidInput(
            f"the last message of node {ended.id!r} is not JSON; tell it to answer with JSON alone"
        ) from None


def _not_json(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
