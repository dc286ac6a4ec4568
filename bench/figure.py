"""What a figure is: a name, what it measures, and lines of medians with their minimum and maximum."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from runtime.errors import AgentRuntimeError

if TYPE_CHECKING:
    from bench.lab import Lab


class BenchFailed(AgentRuntimeError):
    """What was to be measured did not come to its end."""

    code = "BENCH_FAILED"


@dataclass(frozen=True, slots=True)
class Spread:
    """A median with the smallest and the largest value."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """The spread of one value per round."""
        found = sorted(values)
        return cls(median(found), found[0], found[-1])

    def __str__(self) -> str:
        if self.low == self.high:
            return _short(self.median)
        return f"{_short(self.median)} ({_short(self.low)}–{_short(self.high)})"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a figure.

    Attributes:
        name: What was measured.
        unit: Of the values; ``×`` for a ratio of two lines of one round.
        spread: One value per round.
        at_least: What the median should reach.
        at_most: What the median should not exceed.
    """

    name: str
    unit: str
    spread: Spread
    at_least: float | None = None
    at_most: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the goal was met; ``None`` without a goal."""
        if self.at_least is not None:
            return self.spread.median >= self.at_least
        return None if self.at_most is None else self.spread.median <= self.at_most

    @property
    def goal(self) -> str:
        """The goal as text; empty without one."""
        if self.at_least is not None:
            return f"≥ {self.at_least:g}"
        return "" if self.at_most is None else f"≤ {self.at_most:g}"

    def to_json(self) -> dict[str, Any]:
        """The line as plain JSON."""
        return {**asdict(self), "met": self.met}


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure, in a file of its own.

    Attributes:
        name: By which the command line chooses it.
        title: What it measures, in a line.
        measure: Measures it; the flag asks for a small run.
    """

    name: str
    title: str
    measure: Callable[[Lab, bool], list[Line]]


def ratios(values: Iterable[float], floors: Iterable[float]) -> Spread:
    """The ratio of each round's value to the floor of the same round."""
    return Spread.of(value / floor for value, floor in zip(values, floors, strict=True))


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 or value == round(value) else f"{value:.3g}"
