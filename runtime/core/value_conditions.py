"""Conditions on one value of a call: in its input, the metadata, the environment or what was used up."""

from __future__ import annotations

import re
from abc import abstractmethod
from functools import cached_property
from operator import attrgetter
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator
from typing_extensions import override

from runtime.core.condition import Condition
from runtime.core.model import Frozen
from runtime.core.operators import Comparison, Scalar, Verdict
from runtime.core.predicates import UNKNOWN, Bound, Key, Mark, PolicyContext, Predicate, Test, value_at
from runtime.core.predicates import Field as Place


class AsksValue(Condition):
    """A condition on what stands at one place of the call."""

    @property
    @abstractmethod
    def place(self) -> tuple[Place, tuple[str, ...]]:
        """Where the value stands."""

    @property
    @abstractmethod
    def asks(self) -> Comparison:
        """What is asked of it."""

    @cached_property
    def predicate(self) -> Predicate:
        """The compiled condition."""
        field, path = self.place
        asks = self.asks
        verdicts = tuple(asks.verdicts())
        may_stay_open = "matches" in asks.asked and field == "tool_arguments"
        first = None if may_stay_open else verdicts[0]
        key = Key(field, path, asks.expected, first) if asks.needs_value else None
        return Predicate(_value_test(field, path, verdicts, may_stay_open), key)

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return self.predicate

    @override
    def doubt(self, context: PolicyContext) -> str | None:
        if self.predicate.test(context) is not None:
            return None
        field, path = self.place
        shown = ".".join((_SHOWN[field], *path))
        if value_at(getattr(context, field), path) is UNKNOWN:
            return f"{shown} is not known yet"
        return f"{shown} is a text that is too long to search, or not Unicode"


_SHOWN: Final = {"tool_arguments": "input", "execution_metadata": "metadata"} | {
    name: name for name in ("environment", "budget", "intent")
}


def _value_test(
    field: Place, path: tuple[str, ...], verdicts: tuple[Verdict, ...], may_stay_open: bool
) -> Test:
    read = attrgetter(field)
    name, rest = path[0], path[1:]
    only = verdicts[0] if len(verdicts) == 1 else None

    def test(context: PolicyContext) -> bool | None:
        root = read(context)
        value = root.get(name, Mark.MISSING) if type(root) is dict else value_at(root, path[:1])
        if rest:
            value = value_at(value, rest)
        if value is UNKNOWN or (may_stay_open and context.open_input):
            return None
        if only is not None:
            return only(value)
        result: bool | None = True
        for verdict in verdicts:
            truth = verdict(value)
            if truth is False:
                return False
            if truth is None:
                result = None
        return result

    return test


class Lookup(Frozen):
    """A path of keys into an object and the scalar expected there."""

    path: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    value: Scalar


class PathComparison(Comparison):
    """A path of keys into an object and what is asked of the value there."""

    path: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]


class ArgumentEquals(AsksValue):
    """The tool's input holds a scalar at a path."""

    lookup: Annotated[Lookup, Field(alias="argument_equals")]

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "tool_arguments", self.lookup.path

    @property
    @override
    def asks(self) -> Comparison:
        return Comparison(equals=self.lookup.value)


class MetadataEquals(AsksValue):
    """The context's metadata hold a scalar at a path."""

    lookup: Annotated[Lookup, Field(alias="metadata_equals")]

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "execution_metadata", self.lookup.path

    @property
    @override
    def asks(self) -> Comparison:
        return Comparison(equals=self.lookup.value)


class Argument(AsksValue):
    """The tool's input holds at a path what the operators ask."""

    comparison: Annotated[PathComparison, Field(alias="argument")]

    @property
    @override
    def asks(self) -> Comparison:
        return self.comparison

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "tool_arguments", self.comparison.path


class Metadata(AsksValue):
    """The context's metadata hold at a path what the operators ask."""

    comparison: Annotated[PathComparison, Field(alias="metadata")]

    @property
    @override
    def asks(self) -> Comparison:
        return self.comparison

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "execution_metadata", self.comparison.path


_SECRET: Final = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|_URL|DSN|AUTH", re.IGNORECASE)


class Variable(Comparison):
    """A variable of the deciding process and what is asked of its text."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]

    @field_validator("name")
    @classmethod
    def _is_no_secret(cls, name: str) -> str:
        if _SECRET.search(name):
            raise ValueError(
                f"{name!r} may hold a secret, which no rule may read — use a variable whose name has no "
                "KEY, TOKEN, SECRET, PASS, CREDENTIAL, _URL, DSN or AUTH in it"
            )
        return name


class Environment(AsksValue):
    """A variable of the process that decides has the text that the operators ask."""

    comparison: Annotated[Variable, Field(alias="environment")]

    @property
    @override
    def asks(self) -> Comparison:
        return self.comparison

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "environment", (self.comparison.name,)


class Spent(Comparison):
    """A counter of what was used up so far, and what is asked of it.

    Attributes:
        name: ``turns`` and ``tool_calls`` before this call in its node; ``tokens`` and ``money`` (in
            the unit of the budget) where they are counted.
    """

    name: Literal["turns", "tool_calls", "tokens", "money"]

    @model_validator(mode="after")
    def _asks_a_number(self) -> Self:
        if wrong := set(self.asked) - {"equals", "greater_than", "at_least", "less_than", "at_most"}:
            raise ValueError(
                f"a budget is a number, so {', '.join(sorted(wrong))} — use at_least or less_than"
            )
        return self


class Budget(AsksValue):
    """What was used up so far is as the operators ask; what is not counted is neither true nor false."""

    comparison: Annotated[Spent, Field(alias="budget")]

    @property
    @override
    def asks(self) -> Comparison:
        return self.comparison

    @property
    @override
    def place(self) -> tuple[Place, tuple[str, ...]]:
        return "budget", (self.comparison.name,)

    @cached_property
    @override
    def predicate(self) -> Predicate:
        name, verdicts = self.comparison.name, tuple(self.comparison.verdicts())

        def test(context: PolicyContext) -> bool | None:
            value = context.budget.get(name)
            return None if value is None else all(verdict(value) for verdict in verdicts)

        return Predicate(test)

    @override
    def doubt(self, context: PolicyContext) -> str | None:
        name = self.comparison.name
        return f"nobody counts the budget {name!r} of this call" if context.budget.get(name) is None else None
