"""Says what is wrong with a workspace file: each problem with its line, its value and its fix."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runtime.core.model import Json, NetworkScope, Scope
from runtime.core.profile import ModelProfile
from runtime.core.scope_check import bad_scopes
from runtime.core.urls import normalise_url, require_callable
from runtime.errors import ConfigurationError, InvalidInput
from runtime.workspace_model import WorkspaceFile
from runtime.workspace_workflow import read_scheduled
from runtime.workspace_yaml import Document, KeyPath, Problem

_PRIVATE = {"headers", "extra_body"}
"""Sections whose values an error does not repeat, because they may hold a secret."""

_TEXTS = {
    "bool_type": "is not a boolean — write true or false",
    "dict_type": "is not a mapping — write keys with values",
    "float_type": "is not a number — write one, without quotes",
    "int_type": "is not a whole number — write one, without quotes",
    "model_attributes_type": "is not a mapping — write keys with values",
    "model_type": "is not a mapping — write keys with values",
    "string_type": "is not a text — put it in quotes",
    "tuple_type": "is not a list — write [...] or one item per line after '- '",
    "union_tag_not_found": "has no type — add type: path or type: network",
}


def validate(document: Document, base_dir: Path) -> tuple[WorkspaceFile | None, list[Problem]]:
    """Check a parsed file; the result is None when a section does not fit its class.

    Args:
        document: The file.
        base_dir: What its relative paths are relative to.
    """
    content = {} if document.value is None else document.value
    try:
        file = WorkspaceFile.model_validate(content)
    except ValidationError as error:
        return None, [_problem(document, content, item) for item in error.errors(include_url=False)]
    found = [*_references(file), *_scheduled(file, base_dir)]
    return file, [Problem(document.line(path), path, text) for path, text in found]


# --- shape ----------------------------------------------------------------------------------------


def _problem(document: Document, content: Json, item: Any) -> Problem:
    path, value, known = _place(content, item["loc"])
    kind = item["type"]
    if kind == "missing":
        path = (*path, item["loc"][-1])
        return Problem(document.line(path), path, f"is missing — add {item['loc'][-1]!r} here")
    if kind == "extra_forbidden":
        return Problem(
            document.line(path), path, f"unknown key — {_nearest(str(path[-1]), _keys(path[:-1]))}"
        )
    text = _text(kind, item, value)
    shown = "" if not known or value is None or _PRIVATE & set(path) else f", the value is {_short(value)}"
    what, dash, fix = text.partition(" — ")
    return Problem(document.line(path), path, f"{what}{shown}{dash}{fix}")


def _text(kind: str, item: Any, value: Json) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    context = item.get("ctx", {})
    if " — " in message:
        return message
    if value is None:
        return "nothing is written here — remove the key or give it a value"
    if kind in ("enum", "literal_error", "union_tag_invalid"):
        expected = str(context.get("expected") or context.get("expected_tags"))
        tag = value.get("type") if isinstance(value, dict) else value
        choices = [part.strip(" '") for part in expected.replace(" or ", ",").split(",")]
        return f"is not one of {expected} — {_nearest(str(tag), choices)}"
    if kind == "condition" and isinstance(value, dict) and len(value) == 1:
        return f"{message} — {_nearest(str(next(iter(value))), _condition_keys())}"
    return _TEXTS.get(kind) or f"{message[:1].lower()}{message[1:]} — change the value"


def _place(content: Json, location: Iterable[str | int]) -> tuple[KeyPath, Json, bool]:
    """Follow an error's location as far as the file goes; what else is in it names union members."""
    path: KeyPath = ()
    value = content
    for part in location:
        in_mapping = isinstance(value, dict) and part in value
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_mapping or in_list:
            path, value = (*path, part), value[part]
    return path, value, bool(path) and not isinstance(value, dict | list)


def _short(value: Json) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(word: str, choices: Iterable[str]) -> str:
    choices = sorted(set(choices))
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"write one of {', '.join(choices)}"


# --- which keys exist where -----------------------------------------------------------------------


@cache
def _schema() -> dict[str, Any]:
    return WorkspaceFile.model_json_schema()


def _expand(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A schema and all that it stands for: what it refers to, and its alternatives."""
    yield node
    if "$ref" in node:
        yield from _expand(_schema()["$defs"][node["$ref"].rpartition("/")[2]])
    for word in ("anyOf", "oneOf", "allOf"):
        for choice in node.get(word, []):
            yield from _expand(choice)


def _step(node: dict[str, Any], part: str | int) -> Iterator[dict[str, Any]]:
    if isinstance(part, int):
        below = [node.get("items")]
    elif part in node.get("properties", {}):
        below = [node["properties"][part]]
    else:
        below = [node.get("additionalProperties"), *node.get("patternProperties", {}).values()]
    for schema in below:
        if isinstance(schema, dict):
            yield from _expand(schema)


def _keys(path: KeyPath) -> set[str]:
    """The keys that may stand at a place of the file."""
    nodes = list(_expand(_schema()))
    for part in path:
        nodes = [below for node in nodes for below in _step(node, part)]
    return {key for node in nodes for key in node.get("properties", {})}


def _condition_keys() -> set[str]:
    return _keys(("policies", "rules", 0, "when"))


# --- references -----------------------------------------------------------------------------------


def _references(file: WorkspaceFile) -> Iterator[tuple[KeyPath, str]]:
    """What fits its class, but not the rest of the file."""
    config = file.agent_runtime
    if config.default_model is not None and config.default_model not in config.models:
        fix = _nearest(config.default_model, config.models) if config.models else "add it under models"
        text = f"no model has the name {config.default_model!r} — {fix}"
        yield ("agent_runtime", "default_model"), text
    for name, profile in config.models.items():
        yield from _address(("agent_runtime", "models", name), profile)
    lanes = [lane.id for lane in file.lanes]
    yield from _twice(("lanes",), lanes)
    yield from _twice(("agent_runtime", "schedules"), [schedule.id for schedule in config.schedules])
    for index, schedule in enumerate(config.schedules):
        if schedule.lane_id is not None and schedule.lane_id not in lanes:
            path = ("agent_runtime", "schedules", index, "lane_id")
            fix = _nearest(schedule.lane_id, lanes) if lanes else "add it under lanes"
            yield path, f"no lane has the id {schedule.lane_id!r} — {fix}"
    yield from _twice(("policies", "rules"), [rule.id for rule in file.policies.rules])
    yield from _networks(("security", "allowed_scopes"), file.security.allowed_scopes)
    yield from bad_scopes(file.security.allowed_scopes, [lane.allowed_scopes for lane in file.lanes])
    for index, lane in enumerate(file.lanes):
        yield from _networks(("lanes", index, "allowed_scopes"), lane.allowed_scopes or ())
        rules = lane.policies.rules if lane.policies else ()
        yield from _twice(("lanes", index, "policies", "rules"), [rule.id for rule in rules])


def _scheduled(file: WorkspaceFile, base_dir: Path) -> Iterator[tuple[KeyPath, str]]:
    """Schedules whose files could not be started as they are now."""
    lanes = {lane.id for lane in file.lanes}
    for index, schedule in enumerate(file.agent_runtime.schedules):
        path = ("agent_runtime", "schedules", index, "file")
        try:
            found = read_scheduled(schedule, base_dir, schedule.id)
        except InvalidInput as error:
            text = "; ".join(str(error).splitlines())
            yield path, f"{schedule.file!r} is no workflow that can start: {text} — mend it, or name another"
            continue
        lane_id = found.ctx.lane_id
        if schedule.lane_id is None and lane_id is not None and lane_id not in lanes:
            fix = _nearest(lane_id, lanes) if lanes else "add it under lanes"
            yield path, f"{schedule.file!r} names the lane {lane_id!r}, which does not exist — {fix}"


def _address(path: KeyPath, profile: ModelProfile) -> Iterator[tuple[KeyPath, str]]:
    if profile.base_url is None:
        if profile.base_url_env is None:
            yield (
                path,
                "has no address — add base_url, or base_url_env with the name of a variable that holds it",
            )
        return
    try:
        require_callable(normalise_url(profile.base_url, source="base_url"), source="base_url")
    except ConfigurationError as error:
        yield (*path, "base_url"), f"{error} — write an address such as http://127.0.0.1:4010/v1"


def _twice(path: KeyPath, names: list[str]) -> Iterator[tuple[KeyPath, str]]:
    seen: Counter[str] = Counter()
    for index, name in enumerate(names):
        if seen[name]:
            yield (*path, index, "id"), f"the id {name!r} is taken by an earlier entry — choose another one"
        seen[name] += 1


def _networks(path: KeyPath, scopes: Iterable[Scope]) -> Iterator[tuple[KeyPath, str]]:
    for index, scope in enumerate(scopes):
        if not isinstance(scope, NetworkScope):
            continue
        listed = bool(scope.allowlist_entries)
        if scope.posture == "allowlist" and not listed:
            yield (*path, index), "the allowlist has no entries — add allowlist_entries: ['host:port']"
        elif scope.posture != "allowlist" and listed:
            yield (
                (*path, index, "allowlist_entries"),
                f"entries have no meaning under posture {scope.posture!r} — write posture: allowlist",
            )
