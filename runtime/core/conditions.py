"""Conditions of policy rules: small declarative predicates over one call.

A condition is written as a mapping with exactly one key, which names its kind::

    {tool_name_equals: "calendar:create-event"}, {tool_name_in: [...]}, {tool_name_starts_with: "calendar:"}
    {argument_equals: {path: [target, zone], value: prod}}
    {argument: {path: [amount], greater_than: 100}}
    {metadata_equals: {path: [actor, role], value: guest}}
    {metadata: {path: [actor, mail], matches: "@example[.]com$"}}
    {intent_equals: scheduling}, {intent_reachable: planning}
    {time: {zone: Europe/Berlin, from: "22:00", until: "06:00", weekdays: [sat, sun]}}
    {environment: {name: DEPLOYMENT_STAGE, equals: production}}
    {budget: {name: tool_calls, at_least: 10}}
    {cel: "input.amount > 100 && metadata.role == 'guest'"}
    {all: [...]}, {any: [...]}, {not: {...}}

A lookup that meets a missing key or a non-object finds nothing. Values are compared as
`runtime.core.operators` says. A new kind of condition is a subclass of `Condition` named in `When`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Annotated, Any, Final

from pydantic import BaseModel, Discriminator, Field, Tag, field_validator
from typing_extensions import override

from runtime.core.cel import compile_cel
from runtime.core.condition import Condition as Condition  # what every kind of condition is
from runtime.core.condition import NamesTools, ReadsToolName
from runtime.core.period import Period
from runtime.core.predicates import UNKNOWN, Bound, Key, Predicate, combine, negate
from runtime.core.predicates import PolicyContext as PolicyContext  # what conditions are about
from runtime.core.value_conditions import (
    Argument,
    ArgumentEquals,
    Budget,
    Environment,
    Metadata,
    MetadataEquals,
)

# --- the tool -------------------------------------------------------------------------------------


class ToolNameEquals(NamesTools):
    """The call is to the named tool."""

    tool_name: Annotated[str, Field(alias="tool_name_equals")]

    @property
    @override
    def tool_names(self) -> frozenset[str]:
        return frozenset([self.tool_name])


class ToolNameIn(NamesTools):
    """The call is to one of the named tools."""

    names: Annotated[frozenset[str], Field(strict=False, alias="tool_name_in")]

    @property
    @override
    def tool_names(self) -> frozenset[str]:
        return self.names


class ToolNameStartsWith(ReadsToolName):
    """The call is to a tool whose name begins so."""

    prefix: Annotated[str, Field(alias="tool_name_starts_with", min_length=1)]

    @cached_property
    def predicate(self) -> Predicate:
        """The test of a tool that no condition names."""
        prefix = self.prefix
        return Predicate(lambda context: (context.tool_name or "").startswith(prefix))

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate if tool_name is None else tool_name.startswith(self.prefix)


# --- intents --------------------------------------------------------------------------------------


class IntentEquals(Condition):
    """The turn's intent is the given one, and the context allows that intent."""

    intent: Annotated[str, Field(alias="intent_equals")]

    @cached_property
    def predicate(self) -> Predicate:
        """The compiled condition."""
        intent = self.intent

        def test(context: PolicyContext) -> bool | None:
            if context.intent is UNKNOWN:
                return None if _reachable(context, intent) else False
            return context.intent == intent and _reachable(context, intent)

        return Predicate(test, Key("intent", (), (intent,)))

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate


class IntentReachable(Condition):
    """The context allows the given intent, whatever the turn's own intent is."""

    intent: Annotated[str, Field(alias="intent_reachable")]

    @cached_property
    def predicate(self) -> Predicate:
        """The compiled condition."""
        intent = self.intent
        return Predicate(lambda context: _reachable(context, intent))

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate


def _reachable(context: PolicyContext, intent: str) -> bool:
    return context.allowed_intents is None or intent in context.allowed_intents


# --- times, expressions and connectives ---------------------------------------------------------


class Time(Condition):
    """The decision is made within a period; where the instant is not known, neither true nor false."""

    period: Annotated[Period, Field(alias="time")]

    @cached_property
    def predicate(self) -> Predicate:
        """The compiled condition."""
        holds = self.period.holds
        return Predicate(lambda context: None if context.now is None else holds(context.now))

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate

    @override
    def doubt(self, context: PolicyContext) -> str | None:
        return "the time is not known" if context.now is None else None


class Cel(ReadsToolName):
    """A CEL expression is true of the call; see `runtime.core.cel`."""

    cel: str

    @field_validator("cel")
    @classmethod
    def _is_an_expression(cls, text: str) -> str:
        compile_cel(text)
        return text

    @cached_property
    def predicate(self) -> Predicate:
        """The compiled condition."""
        return Predicate(compile_cel(self.cel))

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate

    @override
    def doubt(self, context: PolicyContext) -> str | None:
        value, why = compile_cel(self.cel).evaluate(context)
        return f"the CEL expression failed: {why}" if value is None else None


class AllOf(Condition):
    """Every one of the conditions holds; an empty list always does."""

    conditions: Annotated[tuple[When, ...], Field(strict=False, alias="all")]

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return combine((condition.bind(tool_name) for condition in self.conditions), decisive=False)

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        for condition in self.conditions:
            yield from condition.walk()


class AnyOf(Condition):
    """At least one of the conditions holds; an empty list never does."""

    conditions: Annotated[tuple[When, ...], Field(strict=False, alias="any")]

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return combine((condition.bind(tool_name) for condition in self.conditions), decisive=True)

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        for condition in self.conditions:
            yield from condition.walk()


class Not(Condition):
    """The condition does not hold."""

    condition: Annotated[When, Field(alias="not")]

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return negate(self.condition.bind(tool_name))

    @override
    def walk(self) -> Iterator[Condition]:
        yield self
        yield from self.condition.walk()


_KINDS: Final[dict[str, type[Condition]]] = {
    "tool_name_equals": ToolNameEquals,
    "tool_name_in": ToolNameIn,
    "tool_name_starts_with": ToolNameStartsWith,
    "argument_equals": ArgumentEquals,
    "argument": Argument,
    "metadata_equals": MetadataEquals,
    "metadata": Metadata,
    "intent_equals": IntentEquals,
    "intent_reachable": IntentReachable,
    "time": Time,
    "environment": Environment,
    "budget": Budget,
    "cel": Cel,
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
    | Annotated[ToolNameIn, Tag("tool_name_in")]
    | Annotated[ToolNameStartsWith, Tag("tool_name_starts_with")]
    | Annotated[ArgumentEquals, Tag("argument_equals")]
    | Annotated[Argument, Tag("argument")]
    | Annotated[MetadataEquals, Tag("metadata_equals")]
    | Annotated[Metadata, Tag("metadata")]
    | Annotated[IntentEquals, Tag("intent_equals")]
    | Annotated[IntentReachable, Tag("intent_reachable")]
    | Annotated[Time, Tag("time")]
    | Annotated[Environment, Tag("environment")]
    | Annotated[Budget, Tag("budget")]
    | Annotated[Cel, Tag("cel")]
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
