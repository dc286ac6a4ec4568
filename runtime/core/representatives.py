"""Values that stand for all others: each possible one answers some conditions as one of them does.

At each path that conditions ask about stands nothing, or a value on either side of what they tell apart.
Listings and static checks try these few instead of every input.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from fractions import Fraction
from itertools import product
from math import prod
from typing import Any, Final

from runtime.core.condition import Condition
from runtime.core.operators import Comparison, Scalar
from runtime.core.predicates import Field, Mark, Path
from runtime.core.value_conditions import AsksValue

_PRESENT: Final[Mapping[str, Any]] = {}
"""Something that no operator but ``exists`` holds of."""

Questions = Mapping[Path, tuple[Comparison, ...]]
"""What is asked of the value at each path."""


def questions(conditions: Iterable[Condition], place: Field) -> Questions:
    """What conditions ask of one place of the call, by path."""
    found: dict[Path, tuple[Comparison, ...]] = {}
    for condition in (part for whole in conditions for part in whole.walk()):
        if isinstance(condition, AsksValue) and condition.place[0] == place:
            path = condition.place[1]
            found[path] = (*found.get(path, ()), condition.asks)
    return found


def representatives(asked: Questions, limit: int) -> Iterator[dict[str, Any]] | None:
    """Objects that stand for all, the empty one first; ``None`` where there would be more than ``limit``.

    Args:
        asked: Of `questions`.
        limit: Largest number of objects to make.
    """
    choices = {path: _choices(comparisons) for path, comparisons in asked.items()}
    if prod(map(len, choices.values())) > limit:
        return None
    return _objects(choices)


def _objects(choices: Mapping[Path, tuple[Any, ...]]) -> Iterator[dict[str, Any]]:
    for row in product(*choices.values()):
        entries = [entry for entry in zip(choices, row, strict=True) if entry[1] is not Mark.MISSING]
        found = _object_with(entries)
        if found is not None:
            yield found


def _object_with(entries: list[tuple[Path, Any]]) -> dict[str, Any] | None:
    """An object with values at paths; ``None`` where one path runs through another's value."""
    root: dict[str, Any] = {}
    for path, value in sorted(entries, key=lambda entry: -len(entry[0])):
        inner = root
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        if value is _PRESENT:
            inner.setdefault(path[-1], {})
        elif path[-1] in inner:
            return None
        else:
            inner[path[-1]] = value
    return root


def _choices(comparisons: tuple[Comparison, ...]) -> tuple[Any, ...]:
    """Nothing, and values of which any other answers the comparisons as one does."""
    expected = [value for each in comparisons for value in each.expected or ()]
    bounds = [bound for each in comparisons for bound in each.bounds()]
    prefixes = [each.starts_with for each in comparisons if each.starts_with is not None]
    texts = [value for value in expected if isinstance(value, str)]
    values: list[Any] = [Mark.MISSING]
    if any({"exists", "matches"} & set(each.asked) for each in comparisons):
        values.append(_PRESENT)
    if bounds:
        values += _around([*bounds, *(value for value in expected if type(value) in (int, float))])
    values += expected
    for prefix in prefixes:
        values += [prefix, _another(prefix, [*texts, *prefixes])]
    return tuple(_distinct(values))


def _around(numbers: Iterable[Scalar]) -> Iterator[Any]:
    """The numbers, and one on each side of each."""
    ordered = sorted({Fraction(number) for number in numbers})  # type: ignore[arg-type]
    yield ordered[0] - 1
    for number, after in zip(ordered, [*ordered[1:], None], strict=True):
        yield number
        yield number + 1 if after is None else (number + after) / 2


def _another(prefix: str, taken: list[str]) -> str:
    """A text that begins with the prefix, is none of the texts taken and begins with no longer one."""
    text = prefix + "\x00"
    while any(each.startswith(text) for each in taken):
        text += "\x00"
    return text


def _distinct(values: list[Any]) -> Iterator[Any]:
    seen = set()
    for value in values:
        key = (isinstance(value, bool), repr(value) if value is _PRESENT else value)
        if key not in seen:
            seen.add(key)
            yield value
