"""Glob patterns of path scopes as finite automata: exact matching, containment and overlap.

``/`` separates segments. ``*`` matches one or more characters of a segment, ``?`` one, ``[a-z]`` one of
a set (``[!a-z]``: none of it), ``**`` as a whole segment zero or more segments, ``{a,b}`` either text.
Wildcards match no segment that starts with ``.``. Matching is case sensitive. ``.`` segments and
doubled or trailing slashes mean nothing; so ``./src//`` is ``src``.

What cannot be decided exactly is refused: a pattern that is absolute, climbs with ``..``, negates
with ``!``, uses extended globs or backslashes matches nothing and is contained in nothing.

A path is read as its segments, each with a slash before it: ``src/a.ts`` is ``/src/a.ts`` and the root is
the empty text. A pattern becomes a nondeterministic automaton over characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_LAST: Final = 0x10FFFF
_Span = tuple[int, int]
_Spans = tuple[_Span, ...]
_SLASH: Final[_Spans] = ((ord("/"), ord("/")),)
_DOT: Final[_Spans] = ((ord("."), ord(".")),)
_NOT_SLASH: Final[_Spans] = ((0, ord("/") - 1), (ord("/") + 1, _LAST))
_NOT_SLASH_OR_DOT: Final[_Spans] = ((0, ord(".") - 1), (ord("/") + 1, _LAST))

_MAX_ALTERNATIVES: Final = 256
_MAX_PAIRS: Final = 20_000
_PARTS: Final = re.compile(r"\*+|\?|\[[!^]?[^\]/][^\]/]*\]|.", re.DOTALL)
_BRACES: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")


@dataclass(frozen=True, slots=True)
class _Automaton:
    """Edges leave each state for characters in spans; state 0 is the start; no empty moves."""

    edges: tuple[tuple[tuple[_Spans, int], ...], ...]
    accepting: frozenset[int]

    def step(self, states: frozenset[int], character: int) -> frozenset[int]:
        targets = set()
        for state in states:
            for spans, target in self.edges[state]:
                for low, high in spans:
                    if low <= character <= high:
                        targets.add(target)
        return frozenset(targets)


@lru_cache(maxsize=4096)
def problem(pattern: str) -> str | None:
    """Say why a pattern can never match, or ``None`` if it is well formed."""
    segments = pattern.split("/")
    if pattern.startswith("/"):
        return f"the pattern {pattern!r} is absolute; write it relative to the workspace root"
    if ".." in segments:
        return f"the pattern {pattern!r} climbs with '..'; name the directory itself"
    if "\\" in pattern or "\0" in pattern:
        return f"the pattern {pattern!r} holds a backslash or NUL; separate segments with '/'"
    if pattern.startswith("!") or re.search(r"[@+?*!]\(", pattern):
        return f"the pattern {pattern!r} negates or uses an extended glob; list what is allowed instead"
    if _expand(pattern) is None:
        return f"the pattern {pattern!r} has unbalanced or too many braces; write several scopes"
    return None


def matches(patterns: tuple[str, ...], path: str) -> bool:
    """Whether one of some patterns names a path.

    Args:
        patterns: Globs.
        path: Relative to the workspace root; absolute paths and those with ``..`` match nothing.
    """
    segments = path_segments(path)
    if segments is None:
        return False
    automaton = _automaton(patterns)
    states = frozenset({0})
    for character in "".join("/" + segment for segment in segments):
        states = automaton.step(states, ord(character))
        if not states:
            return False
    return not automaton.accepting.isdisjoint(states)


def path_segments(path: str) -> list[str] | None:
    """The segments of a path that say something; ``None`` for a path that no scope can name."""
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if path.startswith("/") or ".." in segments or "\\" in path or "\0" in path:
        return None
    return segments


def spells(segment: str, directory: str) -> bool:
    """Whether some file systems take a segment for the directory: case, trailing dots and spaces differ."""
    return segment.rstrip(". ").casefold() == directory.casefold()


@lru_cache(maxsize=8192)
def contained(pattern: str, others: tuple[str, ...]) -> bool:
    """Whether every path that a pattern names is named by one of the others.

    A pattern that names nothing is not contained: an empty grant is no grant. A question that
    needs more than a bounded effort is answered with no.
    """
    inner, outer = _automaton((pattern,)), _automaton(others)
    cuts = _cuts((inner, outer))
    names_something = False
    pending = [(0, frozenset({0}))]
    seen = set(pending)
    while pending:
        state, cover = pending.pop()
        if not cover or (state in inner.accepting and outer.accepting.isdisjoint(cover)):
            return False
        names_something = names_something or state in inner.accepting
        for spans, target in inner.edges[state]:
            for character in _representatives(spans, cuts):
                pair = (target, outer.step(cover, character))
                if pair not in seen:
                    seen.add(pair)
                    pending.append(pair)
        if len(seen) > _MAX_PAIRS:
            return False
    return names_something


@lru_cache(maxsize=1024)
def reaches_directory(pattern: str, directory: str) -> bool:
    """Whether a pattern names a top-level directory or something in it, however it is spelt.

    Case, trailing dots and spaces of the directory's name are ignored, as some file systems do; of
    a malformed pattern, a segment with that name suffices.
    """
    if problem(pattern) is not None:
        return any(spells(segment, directory) for segment in re.split(r"[/\\{},]", pattern))
    left, right = _automaton((pattern,)), _directory_automaton(directory)
    cuts = _cuts((left, right))
    pending = [(0, 0)]
    seen = set(pending)
    while pending:
        here, there = pending.pop()
        if here in left.accepting and there in right.accepting:
            return True
        for spans, target in left.edges[here]:
            for character in _representatives(spans, cuts):
                for other in right.step(frozenset({there}), character):
                    if (target, other) not in seen:
                        seen.add((target, other))
                        pending.append((target, other))
    return False


# --- from text to automata ------------------------------------------------------------------------


def _expand(pattern: str) -> tuple[str, ...] | None:
    """Expand ``{a,b}``, innermost first; ``None`` where braces do not balance or explode."""
    done: list[str] = []
    pending = [pattern]
    while pending:
        text = pending.pop()
        braces = _BRACES.search(text)
        if braces is not None:
            pending += [text[: braces.start()] + part + text[braces.end() :] for part in braces[1].split(",")]
        elif "{" in text or "}" in text:
            return None
        else:
            done.append(text)
        if len(done) + len(pending) > _MAX_ALTERNATIVES:
            return None
    return tuple(done)


@lru_cache(maxsize=4096)
def _automaton(patterns: tuple[str, ...]) -> _Automaton:
    """The automaton of a union of patterns; malformed ones add nothing."""
    builder = _Builder()
    for pattern in patterns:
        for text in (_expand(pattern) or ()) if problem(pattern) is None else ():
            if problem(text) is None:
                builder.add(text)
    return builder.build()


class _Builder:
    """Adds alternatives, each from the common start state."""

    def __init__(self) -> None:
        self.edges: list[list[tuple[_Spans, int]]] = [[]]
        self.accepting: set[int] = set()

    def add(self, pattern: str) -> None:
        """Add a pattern without braces."""
        ends = {0}
        for segment in pattern.split("/"):
            if segment == "**":
                ends |= self._any_segments(ends)
            elif segment not in ("", "."):
                ends = self._segment(ends, segment)
        self.accepting |= ends

    def build(self) -> _Automaton:
        """The automaton of everything added."""
        return _Automaton(tuple(tuple(edges) for edges in self.edges), frozenset(self.accepting))

    def state(self, sources: Iterable[int], spans: _Spans) -> int:
        """Add a state that the sources reach by a character of the spans."""
        self.edges.append([])
        state = len(self.edges) - 1
        for source in sources:
            self.edges[source].append((spans, state))
        return state

    def _any_segments(self, sources: set[int]) -> set[int]:
        slash = self.state(sources, _SLASH)
        body = self.state({slash}, _NOT_SLASH_OR_DOT)
        self.edges[body] += [(_NOT_SLASH, body), (_SLASH, slash)]
        return {body}

    def _segment(self, sources: set[int], segment: str) -> set[int]:
        state = self.state(sources, _SLASH)
        for position, part in enumerate(_PARTS.findall(segment)):
            spans = _spans(part)
            if position == 0 and (len(part) > 1 or part in "*?"):
                spans = _minus(spans, _DOT)
            state = self.state({state}, spans)
            if part.startswith("*"):
                self.edges[state].append((_NOT_SLASH, state))
        return {state}


def _spans(part: str) -> _Spans:
    if part[0] in "*?":
        return _NOT_SLASH
    if len(part) == 1:
        return ((ord(part), ord(part)),)
    negated = part[1] in "!^"
    listed = re.findall(r"(.)-(.)|(.)", part[2 if negated else 1 : -1], re.DOTALL)
    spans = sorted((ord(low or one), ord(high or one)) for low, high, one in listed)
    return _minus(_NOT_SLASH, spans) if negated else _minus(spans, _SLASH)


def _minus(spans: Sequence[_Span], removed: Sequence[_Span]) -> _Spans:
    kept = [span for span in spans if span[0] <= span[1]]
    for low, high in removed:
        kept = [
            part
            for start, end in kept
            for part in ((start, min(end, low - 1)), (max(start, high + 1), end))
            if part[0] <= part[1]
        ]
    return tuple(dict.fromkeys(kept))


def _directory_automaton(directory: str) -> _Automaton:
    builder = _Builder()
    state = builder.state({0}, _SLASH)
    for character in directory:
        variants = {character.lower(), character.upper()}
        state = builder.state({state}, tuple((ord(one), ord(one)) for one in sorted(variants)))
    builder.edges[state].append((((ord(" "), ord(" ")), (ord("."), ord("."))), state))
    below = builder.state({state}, _SLASH)
    builder.edges[below].append((((0, _LAST),), below))
    builder.accepting |= {state, below}
    return builder.build()


def _cuts(automata: Iterable[_Automaton]) -> tuple[int, ...]:
    """First characters of the intervals that no edge tells apart."""
    spans = {span for one in automata for edges in one.edges for all_, _ in edges for span in all_}
    return tuple(sorted({0} | {low for low, _ in spans} | {high + 1 for _, high in spans}))


def _representatives(spans: _Spans, cuts: tuple[int, ...]) -> Iterable[int]:
    return (cut for cut in cuts if any(low <= cut <= high for low, high in spans))
