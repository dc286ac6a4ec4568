"""Reads a workflow from a YAML file, as ``agent-runtime run FILE`` and the schedules of a workspace do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from runtime.core.graph import validate_graph
from runtime.core.model import ExecutionContext, Workflow, WorkflowNode
from runtime.core.turn import validate_turn_input
from runtime.errors import InvalidInput
from runtime.workspace_model import Schedule
from runtime.workspace_yaml import Document, Problem, read_yaml

_Model = TypeVar("_Model", bound=BaseModel)
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class WorkflowFile:
    """What a workflow file says.

    Attributes:
        workflow: The graph.
        ctx: On whose behalf it runs, and what narrows it.
        max_turns: Turn budget of nodes that bring none, if the file says it.
    """

    workflow: Workflow
    ctx: ExecutionContext
    max_turns: int | None


def read_workflow(
    path: Path, *, defaults: Mapping[str, Any], fixed: Mapping[str, Any] = _NOTHING
) -> WorkflowFile:
    """Read a workflow file: ``nodes``, and what else a context and a start may say.

    Args:
        path: The file.
        defaults: Fields of the context that the file need not say; the run is named after the session.
        fixed: Fields of the context that win over the file's.

    Raises:
        InvalidInput: If it cannot be read or is wrong; all problems are told with their lines.
    """
    document = _read(path)
    content = document.value
    if not isinstance(content, dict):
        raise InvalidInput(f"{path} holds no workflow; write session_id and nodes as keys with values")
    said = {key: value for key, value in content.items() if key not in ("nodes", "max_turns")}
    context = {**defaults, **said, **fixed}
    context.setdefault("run_id", str(context.get("session_id")))
    graph = {"session_id": str(context.get("session_id"))}
    if "nodes" in content:
        graph["nodes"] = content["nodes"]
    problems: list[Problem] = []
    ctx = _validated(ExecutionContext, context, document, problems)
    workflow = _validated(Workflow, graph, document, problems)
    max_turns = content.get("max_turns")
    if max_turns is not None and (type(max_turns) is not int or max_turns < 1):
        text = f"is {max_turns!r} — write a number above 0"
        problems.append(Problem(document.line(("max_turns",)), ("max_turns",), text))
    _refuse(path, problems)
    assert ctx is not None
    assert workflow is not None
    return WorkflowFile(workflow, ctx, max_turns)


def read_scheduled(schedule: Schedule, base_dir: Path, session_id: str) -> WorkflowFile:
    """Read what a schedule starts, and see that it can start.

    Args:
        schedule: Whose file; its principal and lane win over the file's.
        base_dir: What the file is relative to.
        session_id: The id of the session, whatever the file says.

    Raises:
        InvalidInput: If the file cannot be read, or anything in it is wrong.
    """
    own = {"session_id": session_id, "principal": schedule.principal, "lane_id": schedule.lane_id}
    found = read_workflow(
        base_dir / schedule.file,
        defaults={"task_id": schedule.id},
        fixed={key: value for key, value in own.items() if value is not None},
    )
    validate_graph(found.workflow.nodes)
    for node in found.workflow.nodes:
        _check_turn(node, session_id)
    return found


def _check_turn(node: WorkflowNode, session_id: str) -> None:
    where = f"node {node.id!r}: execute_turn_input"
    if "session_id" in node.execute_turn_input:
        raise InvalidInput(f"{where}.session_id: each due time has a session of its own; leave it out")
    try:
        validate_turn_input({**node.execute_turn_input, "session_id": session_id}, default_model="default")
    except InvalidInput as error:
        raise InvalidInput(f"{where}: {error}") from None


def _read(path: Path) -> Document:
    try:
        document = read_yaml(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); name a workflow file") from None
    except UnicodeDecodeError:
        raise InvalidInput(f"{path} is not UTF-8; save the file as UTF-8") from None
    _refuse(path, document.problems)
    return document


def _validated(
    model: type[_Model], content: Mapping[str, Any], document: Document, problems: list[Problem]
) -> _Model | None:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems += [_problem(document, item) for item in error.errors(include_url=False)]
        return None


def _problem(document: Document, item: Any) -> Problem:
    place = tuple(item["loc"])
    fix = {
        "missing": "is missing — add it",
        "extra_forbidden": "is no key of a workflow file — see 'agent-runtime run --help', or remove it",
    }.get(item["type"], f"{str(item['msg'])[:1].lower()}{str(item['msg'])[1:]} — change the value")
    return Problem(document.line(place), place, fix)


def _refuse(path: Path, problems: list[Problem]) -> None:
    if problems:
        texts = [problem.at(path.name) for problem in sorted(problems, key=lambda each: each.line or 0)]
        raise InvalidInput("\n".join(texts), details={"problems": texts})
