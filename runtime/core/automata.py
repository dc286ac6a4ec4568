"""Finite automata over characters: whether one names what another names, decided exactly.

An automaton is nondeterministic and has no empty moves. Characters are code points; an edge takes a set
of them, written as spans, so that nothing here depends on the size of an alphabet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

LAST: Final = 0x10FFFF
"""The highest code point."""

EFFORT: Final = 200_000
"""States looked at, counted again each time, after which a question of inclusion is answered with no."""

_COMPARED: Final = 32

Span = tuple[int, int]
Spans = tuple[Span, ...]
Edge = tuple[Spans, int]

DOT: Final[Spans] = ((ord("."), ord(".")),)
SLASH: Final[Spans] = ((ord("/"), ord("/")),)


@dataclass(frozen=True, slots=True)
class Automaton:
    """Edges leave each state for characters in spans; state 0 is the start.

    Every state but the start leads to an accepting one, see `built`.
    """

    edges: tuple[tuple[Edge, ...], ...]
    accepting: frozenset[int]

    @property
    def empty(self) -> bool:
        """Whether it names nothing at all."""
        return not self.accepting

    def step(self, states: frozenset[int], character: int) -> frozenset[int]:
        """The states to which a character leads from some states."""
        return frozenset(
            target
            for state in states
            for spans, target in self.edges[state]
            for low, high in spans
            if low <= character <= high
        )

    def names(self, text: str) -> bool:
        """Whether it accepts a text."""
        states = frozenset({0})
        for character in text:
            states = self.step(states, ord(character))
            if not states:
                return False
        return not self.accepting.isdisjoint(states)


def built(edges: Sequence[Sequence[Edge]], accepting: Iterable[int]) -> Automaton:
    """An automaton without the states from which nothing is ever accepted."""
    ahead = [{target for spans, target in leaving if spans} for leaving in edges]
    behind: list[set[int]] = [set() for _ in edges]
    for state, targets in enumerate(ahead):
        for target in targets:
            behind[target].add(state)
    ends = _reached({0}, ahead) & set(accepting)
    useful = _reached(ends, behind)
    kept = (tuple(edge for edge in leaving if edge[0] and edge[1] in useful) for leaving in edges)
    return Automaton(tuple(kept), frozenset(ends))


def _reached(states: set[int], moves: Sequence[set[int]]) -> set[int]:
    """What moves lead to from some states, these included."""
    reached, pending = set(states), list(states)
    while pending:
        new = moves[pending.pop()] - reached
        reached |= new
        pending += new
    return reached


def without_dot_segments(automaton: Automaton) -> Automaton:
    """The automaton without the texts that hold a segment ``.`` or ``..``, which are no paths.

    Each state is split by what its segment holds so far: nothing, one dot, two dots, anything else.
    """
    numbers: dict[tuple[int, int], int] = {(0, 3): 0}
    edges: list[list[Edge]] = [[]]
    pending = [(0, 3)]
    while pending:
        state, dots = here = pending.pop()
        for spans, target in automaton.edges[state]:
            slash, dot, rest = meet(spans, SLASH), meet(spans, DOT), minus(minus(spans, SLASH), DOT)
            for part, then in ((slash, 0), (dot, min(dots + 1, 3)), (rest, 3)):
                if not part or (then == 0 and dots in (1, 2)):
                    continue
                there = (target, then)
                if there not in numbers:
                    numbers[there] = len(edges)
                    edges.append([])
                    pending.append(there)
                edges[numbers[here]].append((part, numbers[there]))
    accepting = [
        number for (state, dots), number in numbers.items() if state in automaton.accepting and dots in (0, 3)
    ]
    return built(edges, accepting)


def included(inner: Automaton, outer: Automaton) -> bool:
    """Whether every text that the inner one names is named by the outer one.

    States of the inner one are followed together with all states of the outer one that the same text
    leads to. Of two such sets for one state, only the smaller needs to be followed: what escapes the larger
    escapes it as well (M. De Wulf and others, "Antichains", CAV 2006). A question that needs more than
    `EFFORT` is answered with no.
    """
    start = frozenset({0})
    pending = [(0, start)]
    followed = {(0, start)}
    smallest: dict[int, list[frozenset[int]]] = {0: [start]}
    effort = 0
    while pending:
        state, cover = pending.pop()
        if state in inner.accepting and outer.accepting.isdisjoint(cover):
            return False
        for spans, target in inner.edges[state]:
            for beyond in _successors(outer, cover, spans):
                if not beyond:
                    return False
                effort += len(cover)
                pair = (target, beyond)
                if pair in followed or any(each <= beyond for each in smallest.get(target, ())):
                    continue
                followed.add(pair)
                pending.append(pair)
                _keep_smallest(smallest.setdefault(target, []), beyond)
        if effort > EFFORT:
            return False
    return True


def _keep_smallest(known: list[frozenset[int]], new: frozenset[int]) -> None:
    """Add a set, and forget those that hold it; a few suffice, and more would cost more than they save."""
    known[:] = [each for each in known if not new <= each][: _COMPARED - 1]
    known.append(new)


def overlap(left: Automaton, right: Automaton) -> bool:
    """Whether some text is named by both."""
    pending = [(0, 0)]
    seen = set(pending)
    while pending:
        here, there = pending.pop()
        if here in left.accepting and there in right.accepting:
            return True
        for spans, target in left.edges[here]:
            for others, other in right.edges[there]:
                pair = (target, other)
                if pair not in seen and meet(spans, others):
                    seen.add(pair)
                    pending.append(pair)
    return False


def meet(spans: Spans, others: Spans) -> Spans:
    """The characters in both."""
    return tuple(
        (max(low, start), min(high, end))
        for low, high in spans
        for start, end in others
        if max(low, start) <= min(high, end)
    )


def minus(spans: Sequence[Span], removed: Sequence[Span]) -> Spans:
    """The characters in the first that are not in the second."""
    kept = [span for span in spans if span[0] <= span[1]]
    for low, high in removed:
        kept = [
            part
            for start, end in kept
            for part in ((start, min(end, low - 1)), (max(start, high + 1), end))
            if part[0] <= part[1]
        ]
    return tuple(dict.fromkeys(kept))


def _successors(outer: Automaton, cover: frozenset[int], spans: Spans) -> Iterator[frozenset[int]]:
    """Where some states lead to, one set for each part of the spans that no edge of theirs tells apart."""
    leaving = [
        (start, end, target)
        for state in cover
        for others, target in outer.edges[state]
        for start, end in others
    ]
    cuts = {start for start, _, _ in leaving} | {end + 1 for _, end, _ in leaving}
    for low, high in spans:
        for character in (low, *(cut for cut in cuts if low < cut <= high)):
            yield frozenset(target for start, end, target in leaving if start <= character <= end)
