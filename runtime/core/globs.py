"""Glob patterns of path scopes: exact matching and containment.

``/`` separates segments. ``*`` matches one or more characters of a segment, ``?`` one, ``[a-z]`` one of
a set (``[!a-z]``: none of it), ``**`` as a whole segment zero or more segments, ``{a,b}`` either text.
Wildcards match no segment that starts with ``.``. Matching is by code point: case, and the ways Unicode has
to write one letter, are told apart. ``.`` segments and doubled or trailing slashes mean nothing; so
``./src//`` is ``src``.

What cannot be decided exactly is refused: a pattern that is absolute, climbs with ``..``, negates
with ``!``, uses extended globs or backslashes matches nothing and is contained in nothing.

A path is read as its segments, each with a slash before it: ``src/a.ts`` is ``/src/a.ts`` and the root is
the empty text. A pattern becomes an automaton over characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Final

from runtime.core.automata import (
    DOT,
    LAST,
    SLASH,
    Automaton,
    Edge,
    Spans,
    built,
    included,
    minus,
    without_dot_segments,
)

MAX_LENGTH: Final = 8192
"""Characters of a pattern; a longer one is malformed."""

MAX_ALTERNATIVES: Final = 256
"""Texts that the braces of a pattern may expand to; one with more is malformed."""

MAX_EXPANDED: Final = 32_768
"""Characters of all those texts together; a pattern with more is malformed."""

_MAX_PAIRS: Final = 4096

# No path holds a slash inside a segment, a backslash or a NUL.
_ANY: Final[Spans] = minus(((0, LAST),), (*SLASH, (ord("\\"), ord("\\")), (0, 0)))
_ANY_BUT_DOT: Final[Spans] = minus(_ANY, DOT)

_PARTS: Final = re.compile(r"\*+|\?|\[[!^]?[^\]/][^\]/]*\]|.", re.DOTALL)
_BRACES: Final = re.compile(r"\{([^{}]*,[^{}]*)\}")
_DOTTED: Final = re.compile(r"(?:^|/)\.")
_LITERAL: Final = re.compile(r"[^*?\[{]*")


@lru_cache(maxsize=8192)
def problem(pattern: str) -> str | None:
    """Say why a pattern can never match, or ``None`` if it is well formed."""
    found = _misspelt(pattern)
    if found is None and automaton((pattern,)).empty:
        return f"the pattern {pattern!r} names no path, for a set in it has no character — write it as [a-z]"
    return found


def _misspelt(pattern: str) -> str | None:
    if len(pattern) > MAX_LENGTH:
        return (
            f"the pattern {pattern[:40]!r}... is {len(pattern)} characters long — write at most {MAX_LENGTH}"
        )
    if "\\" in pattern or "\0" in pattern:
        return f"the pattern {pattern!r} holds a backslash or NUL — separate segments with '/'"
    if pattern.startswith("!") or re.search(r"[@+?*!]\(", pattern):
        return f"the pattern {pattern!r} negates or uses an extended glob — list what is allowed instead"
    texts = _expand(pattern)
    if texts is None:
        return f"the pattern {pattern!r} has unbalanced or too many braces — write several scopes"
    if any(text.startswith("/") for text in texts):
        return f"the pattern {pattern!r} is absolute — write it relative to the workspace root"
    if any(".." in text.split("/") for text in texts):
        return f"the pattern {pattern!r} climbs with '..' — name the directory itself"
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
    text = "".join("/" + segment for segment in segments)
    begins_alike = (pattern for pattern in patterns if f"{text}/".startswith(_literal(pattern), 1))
    return any(automaton((pattern,)).names(text) for pattern in begins_alike)


def path_segments(path: str) -> list[str] | None:
    """The segments of a path that say something; ``None`` for a path that no scope can name."""
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if path.startswith("/") or ".." in segments or "\\" in path or "\0" in path:
        return None
    return segments


def contained(pattern: str, others: Iterable[str]) -> bool:
    """Whether every path that a pattern names is named by one of the others.

    A malformed pattern is not contained: an empty grant is no grant. The answer is exact, also where only
    several of the others together name everything, within the effort of `runtime.core.automata.included`;
    beyond that it is no. Patterns that people write need a thousandth of it.
    """
    known = others if isinstance(others, frozenset | set) else frozenset(others)
    if not certain_covers(pattern).isdisjoint(known):
        return True
    if problem(pattern) is not None:
        return False
    near = [other for other in known if _may_meet(pattern, other)]
    if any(_plainly_within(pattern, other) for other in near):
        return True
    return bool(near) and _included(pattern, tuple(sorted(near)))


@lru_cache(maxsize=8192)
def certain_covers(pattern: str) -> frozenset[str]:
    """Texts of patterns that contain this one for certain; empty if it is malformed.

    So the usual question, whether ``src/a/**`` lies within ``src/**``, is answered by a look into a set. What
    is not in here may contain it all the same.
    """
    if problem(pattern) is not None:
        return frozenset()
    covers = {pattern}
    if "{" not in pattern:
        segments = _segments(pattern)
        for length in reversed(range(len(segments) + 1)):
            if length < len(segments) and segments[length].startswith("."):
                break
            covers.add("/".join([*segments[:length], "**"]))
    return frozenset(covers)


@lru_cache(maxsize=8192)
def _included(pattern: str, others: tuple[str, ...]) -> bool:
    return included(automaton((pattern,)), automaton(others))


@lru_cache(maxsize=16384)
def _plainly_within(pattern: str, other: str) -> bool:
    """Whether each alternative of a pattern lies within one alternative of the other, segment by segment.

    This decides what is usual in a few microseconds. A no says nothing.
    """
    inner = [_segments(text) for text in _texts(pattern)]
    outer = [_segments(text) for text in _texts(other)]
    if len(inner) * len(outer) > _MAX_PAIRS:
        return False
    return all(any(_within(segments, within) for within in outer) for segments in inner)


def _within(segments: tuple[str, ...], others: tuple[str, ...]) -> bool:
    open_ended = others[-1:] == ("**",)
    head = others[:-1] if open_ended else others
    rest = segments[len(head) :]
    if len(segments) < len(head) or (rest and not open_ended) or any(each.startswith(".") for each in rest):
        return False
    pairs = zip(segments, head, strict=False)
    return "**" not in head and all(mine == other or _segment_within(mine, other) for mine, other in pairs)


def _segment_within(segment: str, other: str) -> bool:
    if other == "*" and not segment.startswith("."):
        return segment != "**"
    return segment != "**" and _segment_included(segment, other)


@lru_cache(maxsize=8192)
def _segment_included(segment: str, other: str) -> bool:
    return included(_automaton_of((segment,)), _automaton_of((other,)))


@lru_cache(maxsize=8192)
def _segments(text: str) -> tuple[str, ...]:
    return tuple(segment for segment in text.split("/") if segment not in ("", "."))


def _may_meet(pattern: str, other: str) -> bool:
    """Whether two patterns begin alike as far as they are literal; if not, no path is named by both."""
    mine, theirs = _literal(pattern), _literal(other)
    return mine.startswith(theirs) or theirs.startswith(mine)


@lru_cache(maxsize=8192)
def _literal(pattern: str) -> str:
    """What every path that a pattern names begins with, a slash at its end aside; empty where unsure."""
    if "//" in pattern or "./" in pattern or pattern in (".", ""):
        return ""
    literal = _LITERAL.match(pattern)
    assert literal is not None
    return literal[0].removesuffix("/.").removesuffix("/")


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
        if len(done) + len(pending) > MAX_ALTERNATIVES:
            return None
    return tuple(done) if sum(map(len, done)) <= MAX_EXPANDED else None


@lru_cache(maxsize=8192)
def _texts(pattern: str) -> tuple[str, ...]:
    """The alternatives of a pattern; none if it is malformed."""
    return (_expand(pattern) or ()) if _misspelt(pattern) is None else ()


@lru_cache(maxsize=1024)
def automaton(patterns: tuple[str, ...]) -> Automaton:
    """The automaton of a union of patterns; malformed ones add nothing."""
    return _automaton_of(tuple(text for each in patterns for text in _texts(each)))


def _automaton_of(texts: tuple[str, ...]) -> Automaton:
    """The automaton of a union of texts without braces."""
    builder = _Builder()
    for text in texts:
        builder.add(text)
    found = built(builder.edges, builder.accepting)
    return without_dot_segments(found) if any(_DOTTED.search(text) for text in texts) else found


class _Builder:
    """Adds alternatives, each from the common start state."""

    def __init__(self) -> None:
        self.edges: list[list[Edge]] = [[]]
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

    def _state(self, sources: Iterable[int], spans: Spans) -> int:
        """Add a state that the sources reach by a character of the spans."""
        self.edges.append([])
        state = len(self.edges) - 1
        for source in sources:
            self.edges[source].append((spans, state))
        return state

    def _any_segments(self, sources: set[int]) -> set[int]:
        slash = self._state(sources, SLASH)
        body = self._state({slash}, _ANY_BUT_DOT)
        self.edges[body] += [(_ANY, body), (SLASH, slash)]
        return {body}

    def _segment(self, sources: set[int], segment: str) -> set[int]:
        state = self._state(sources, SLASH)
        for position, part in enumerate(_PARTS.findall(segment)):
            spans = _spans(part)
            if position == 0 and (len(part) > 1 or part in "*?"):
                spans = minus(spans, DOT)
            state = self._state({state}, spans)
            if part.startswith("*"):
                self.edges[state].append((_ANY, state))
        return {state}


def _spans(part: str) -> Spans:
    if part[0] in "*?":
        return _ANY
    if len(part) == 1:
        return ((ord(part), ord(part)),)
    negated = part[1] in "!^"
    listed = re.findall(r"(.)-(.)|(.)", part[2 if negated else 1 : -1], re.DOTALL)
    spans = sorted((ord(low or one), ord(high or one)) for low, high, one in listed)
    return minus(_ANY, spans) if negated else minus(spans, (*SLASH, (ord("\\"), ord("\\")), (0, 0)))
