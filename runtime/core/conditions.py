"""Conditions of policy rules: small declarative predicates over one call.

A condition is written as a mapping with exactly one key, which names its kind::

    {tool_name_equals: "calendar:create-event"}
    {argument_equals: {path: [target, zone], value: prod}}
    {metadata_equals: {path: [actor, role], value: guest}}
    {intent_equals: scheduling}
    {all: [...]}, {any: [...]}, {not: {...}}

A lookup that meets a missing key or a non-object is false. Values are scalars compared with their
type: ``1`` is neither ``true`` nor ``"1"``.

Truth has three values: a test of arguments that are not known yet is ``None``, and ``all``, ``any``
and ``not`` pass it on as in Kleene's logic. A new kind of condition is a subclass of `Condition`
named in `When`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from itertools import product
from math import prod
from operator import attrgetter
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag
from typing_extensions import override

from runtime.core.canonical import canonical_json
from runtime.core.model import Frozen


class _Unknown(Enum):
    ARGUMENTS = "arguments"


UNKNOWN_ARGUMENTS: Final = _Unknown.ARGUMENTS
"""Stands for the arguments of a call that has not been made: any input is possible."""


_MISSING: Final = object()


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """The call that policy decides on.

    Attributes:
        trigger: When policy is asked: ``on_tool_request``, or another event of the runtime.
        run_id: The application's run.
        task_id: The application's task, if any.
        tool_name: The registered name of the tool, if a tool is concerned.
        tool_arguments: The canonical input; anything but a mapping counts as having no keys.
        execution_metadata: The context's metadata; ``agent_intent`` has a meaning.
        allowed_intents: Intents that may be chosen; ``None`` means all that are configured.
    """

    trigger: str
    run_id: str
    task_id: str | None = None
    tool_name: str | None = None
    tool_arguments: Any = None
    execution_metadata: Mapping[str, Any] = field(default_factory=dict)
    allowed_intents: tuple[str, ...] | None = None


Test = Callable[[PolicyContext], bool | None]
"""A condition for one tool: true, false, or ``None`` where it depends on unknown arguments."""


class Condition(Frozen):
    """Base of all conditions."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @abstractmethod
    def bind(self, tool_name: str | None) -> Test | bool:
        """Specialise the condition to one tool; a constant where nothing else matters.

        Args:
            tool_name: The tool, or ``None`` for every tool that no condition names.
        """

    def walk(self) -> Iterator[Condition]:
        """The condition and those within it."""
        yield self


class ToolNameEquals(Condition):
    """The call is to the named tool."""

    tool_name: Annotated[str, Field(alias="tool_name_equals")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        return tool_name == self.tool_name


Scalar = bool | int | float | str | None


class Lookup(Frozen):
    """A path of keys into an object and the scalar expected there."""

    path: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    value: Scalar


class ArgumentEquals(Condition):
    """The tool's input holds a scalar at a path."""

    lookup: Annotated[Lookup, Field(alias="argument_equals")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        return _lookup("tool_arguments", self.lookup.path, self.lookup.value)


class MetadataEquals(Condition):
    """The context's metadata hold a scalar at a path."""

    lookup: Annotated[Lookup, Field(alias="metadata_equals")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        return _lookup("execution_metadata", self.lookup.path, self.lookup.value)


class IntentEquals(Condition):
    """The turn's intent is the given one, and the context allows that intent."""

    intent: Annotated[str, Field(alias="intent_equals")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        intent = self.intent
        return lambda context: intent_of(context.execution_metadata) == intent and _reachable(context, intent)


class IntentReachable(Condition):
    """The context allows the given intent, whatever the turn's own intent is."""

    intent: Annotated[str, Field(alias="intent_reachable")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        intent = self.intent
        return lambda context: _reachable(context, intent)


class AllOf(Condition):
    """Every one of the conditions holds; an empty list always does."""

    conditions: Annotated[tuple[When, ...], Field(strict=False, alias="all")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        return _combine([condition.bind(tool_name) for condition in self.conditions], decisive=False)

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        for condition in self.conditions:
            yield from condition.walk()


class AnyOf(Condition):
    """At least one of the conditions holds; an empty list never does."""

    conditions: Annotated[tuple[When, ...], Field(strict=False, alias="any")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        return _combine([condition.bind(tool_name) for condition in self.conditions], decisive=True)

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        for condition in self.conditions:
            yield from condition.walk()


class Not(Condition):
    """The condition does not hold."""

    condition: Annotated[When, Field(alias="not")]

    @override
    def bind(self, tool_name: str | None) -> Test | bool:
        inner = self.condition.bind(tool_name)
        if isinstance(inner, bool):
            return not inner

        def test(context: PolicyContext) -> bool | None:
            truth = inner(context)
            return None if truth is None else not truth

        return test

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        yield from self.condition.walk()


def intent_of(metadata: Any) -> str | None:
    """The turn's intent, trimmed; ``None`` where it is absent, blank or not a string."""
    intent = metadata.get("agent_intent") if isinstance(metadata, Mapping) else None
    return intent.strip(" \t\r\n") or None if isinstance(intent, str) else None


def representative_inputs(conditions: Iterable[Condition], limit: int) -> tuple[Any, ...] | None:
    """Inputs of which each possible input answers the conditions like one of them.

    At each path that is looked up stands one of the values that conditions expect there, or nothing.

    Args:
        conditions: What may be asked of the input.
        limit: Largest number of inputs to make; ``None`` is returned where more are needed.
    """
    expected: dict[tuple[str, ...], dict[str, Scalar]] = {}
    for condition in (part for whole in conditions for part in whole.walk()):
        if isinstance(condition, ArgumentEquals):
            lookup = condition.lookup
            expected.setdefault(lookup.path, {})[canonical_json(lookup.value)] = lookup.value
    if prod(len(values) + 1 for values in expected.values()) > limit:
        return None
    choices = [[None, *((path, value) for value in values.values())] for path, values in expected.items()]
    inputs = (_input_with([choice for choice in row if choice is not None]) for row in product(*choices))
    return tuple(input for input in inputs if input is not None)


def _input_with(entries: list[tuple[tuple[str, ...], Scalar]]) -> dict[str, Any] | None:
    """An object with values at paths; ``None`` where one path runs through another's value."""
    root: dict[str, Any] = {}
    for path, value in sorted(entries, key=lambda entry: -len(entry[0])):
        inner = root
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        if path[-1] in inner:
            return None
        inner[path[-1]] = value
    return root


def _reachable(context: PolicyContext, intent: str) -> bool:
    return context.allowed_intents is None or intent in context.allowed_intents


def _lookup(field: str, path: tuple[str, ...], expected: Scalar) -> Test:
    """A test whether an object of the context holds a scalar at a path, with the types of JSON."""
    read = attrgetter(field)
    boolean = isinstance(expected, bool)

    def test(context: PolicyContext) -> bool | None:
        value = read(context)
        for key in path:
            # The exact type is asked first: an abstract class costs ten times as much.
            if type(value) is not dict and not isinstance(value, Mapping):
                return None if value is UNKNOWN_ARGUMENTS else False
            value = value.get(key, _MISSING)
        if boolean or value is True or value is False:
            return value is expected  # True == 1 in Python, not in JSON
        return bool(value == expected)

    return test


def _combine(parts: list[Test | bool], *, decisive: bool) -> Test | bool:
    """`any` (decisive true) or `all` (decisive false) of parts, constants folded away."""
    if any(part is decisive for part in parts):
        return decisive
    tests = [part for part in parts if not isinstance(part, bool)]
    if len(tests) < 2:
        return tests[0] if tests else not decisive

    def test(context: PolicyContext) -> bool | None:
        result: bool | None = not decisive
        for part in tests:
            truth = part(context)
            if truth is decisive:
                return decisive
            if truth is None:
                result = None
        return result

    return test


_KINDS: Final[dict[str, type[Condition]]] = {
    "tool_name_equals": ToolNameEquals,
    "argument_equals": ArgumentEquals,
    "metadata_equals": MetadataEquals,
    "intent_equals": IntentEquals,
    "intent_reachable": IntentReachable,
    "all": AllOf,
    "any": AnyOf,
    "not": Not,
}


def _kind_of(value: Any) -> str | None:
    if isinstance(value, BaseModel):
        return next((kind for kind, model in _KINDS.items() if type(value) is model), None)
    if isinstance(value, dict) and len(value) == 1:
        return next((kind for kind in value if isinstance(kind, str) and kind in _KINDS), None)
    return None


When = Annotated[
    Annotated[ToolNameEquals, Tag("tool_name_equals")]
    | Annotated[ArgumentEquals, Tag("argument_equals")]
    | Annotated[MetadataEquals, Tag("metadata_equals")]
    | Annotated[IntentEquals, Tag("intent_equals")]
    | Annotated[IntentReachable, Tag("intent_reachable")]
    | Annotated[AllOf, Tag("all")]
    | Annotated[AnyOf, Tag("any")]
    | Annotated[Not, Tag("not")],
    Discriminator(
        _kind_of,
        custom_error_type="condition",
        custom_error_message="a condition is a mapping with exactly one of the keys " + ", ".join(_KINDS),
    ),
]
"""Any condition, as a model or as the mapping that a workspace file holds."""

for _model in (AllOf, AnyOf, Not):
    _model.model_rebuild()
