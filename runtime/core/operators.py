"""What a condition may ask of one value: the operators of ``argument``, ``metadata`` and their like.

Values are compared with their type, as in JSON: ``1`` is neither ``true`` nor ``"1"``. Patterns are RE2's,
which take time in proportion to the text whatever they say; a text of more than `MAX_TEXT` characters is not
searched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Annotated, Any, Final, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from runtime.core.cel import text_matcher
from runtime.core.model import Frozen
from runtime.core.predicates import Mark

Scalar = bool | int | float | str | None
Number = Annotated[int | float, Field(allow_inf_nan=False)]

MAX_TEXT: Final = 100_000
"""Characters of a text that a pattern is tried on."""

Verdict = Callable[[Any], bool | None]
"""Says of a value, or of ``MISSING``, whether an operator holds; ``None`` where that cannot be said."""


class Comparison(Frozen):
    """Operators, all of which must hold of a value; what is missing meets only ``exists: false``.

    Attributes:
        equals: The scalar it must be.
        one_of: Scalars of which it must be one (``in``).
        greater_than: A number it must exceed.
        at_least: A number it must not be below.
        less_than: A number it must be below.
        at_most: A number it must not exceed.
        starts_with: What the text must begin with.
        matches: A pattern (RE2) that must occur in the text; ``^`` and ``$`` bind it to its ends.
        exists: Whether there must be a value.
    """

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    equals: Scalar = None
    one_of: Annotated[tuple[Scalar, ...] | None, Field(strict=False, alias="in", min_length=1)] = None
    greater_than: Number | None = None
    at_least: Number | None = None
    less_than: Number | None = None
    at_most: Number | None = None
    starts_with: str | None = None
    matches: str | None = None
    exists: bool | None = None

    @model_validator(mode="after")
    def _asks_something(self) -> Self:
        empty = [name for name in self.asked if name != "equals" and getattr(self, name) is None]
        if not self.asked or empty:
            raise ValueError(
                "asks nothing — add one of " + ", ".join(_OPERATORS).replace("one_of", "in") + " with a value"
            )
        return self

    @field_validator("matches")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            text_matcher(pattern)
        return pattern

    @property
    def asked(self) -> tuple[str, ...]:
        """Names of the operators that are used."""
        return tuple(name for name in _OPERATORS if name in self.model_fields_set)

    @property
    def needs_value(self) -> bool:
        """Whether it is false where there is no value."""
        return any(name != "exists" for name in self.asked) or self.exists is True

    @property
    def expected(self) -> tuple[Scalar, ...] | None:
        """The values of which it must be one; ``None`` where others do as well."""
        if "equals" in self.asked:
            return (self.equals,)
        return self.one_of

    def verdicts(self) -> Iterator[Verdict]:
        """One function per operator, patterns last, which cost most."""
        for name in self.asked:
            yield _OPERATORS[name](getattr(self, name))

    def bounds(self) -> tuple[int | float, ...]:
        """The numbers at which it changes its mind."""
        names = ("greater_than", "at_least", "less_than", "at_most")
        return tuple(getattr(self, name) for name in names if name in self.asked)


def equal(value: Any, expected: Scalar) -> bool:
    """Whether two scalars are one, with the types of JSON: ``True == 1`` in Python, not there."""
    if isinstance(expected, bool) or value is True or value is False:
        return value is expected
    return bool(value == expected)


def _equals(expected: Any) -> Verdict:
    if isinstance(expected, bool):
        return lambda value: value is expected

    def verdict(value: Any) -> bool:
        return value is not True and value is not False and bool(value == expected)

    return verdict


def _one_of(expected: Any) -> Verdict:
    return lambda value: any(equal(value, each) for each in expected)


def _number(holds: Callable[[Any], bool]) -> Verdict:
    def verdict(value: Any) -> bool:
        return type(value) in (int, float, Fraction) and holds(value)

    return verdict


def _starts_with(prefix: Any) -> Verdict:
    return lambda value: isinstance(value, str) and value.startswith(prefix)


def _matches(pattern: Any) -> Verdict:
    search = text_matcher(pattern)

    def verdict(value: Any) -> bool | None:
        if not isinstance(value, str):
            return False
        return search(value) if len(value) <= MAX_TEXT else None

    return verdict


def _exists(wanted: Any) -> Verdict:
    return lambda value: (value is not Mark.MISSING) is wanted


_OPERATORS: Final[dict[str, Callable[[Any], Verdict]]] = {
    "equals": _equals,
    "one_of": _one_of,
    "greater_than": lambda bound: _number(lambda value: value > bound),
    "at_least": lambda bound: _number(lambda value: value >= bound),
    "less_than": lambda bound: _number(lambda value: value < bound),
    "at_most": lambda bound: _number(lambda value: value <= bound),
    "starts_with": _starts_with,
    "exists": _exists,
    "matches": _matches,
}
