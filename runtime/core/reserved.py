"""Spellings of a directory that nothing may write to, on whatever file system it lies.

A file system may take another text for the same name. Those that are known:

* case: APFS, NTFS, ext4 with ``casefold``;
* Unicode normal forms: NFC and NFD on APFS, NFKC and NFKD on ZFS where it is set so;
* characters without a look, such as U+200C, which HFS+ and ext4 with ``casefold`` skip;
* trailing dots and spaces, and streams (``name::$DATA``), which Windows drops;
* short names of Windows: ``.agent-runtime`` may also be ``AGENT-~1`` or ``AG1A2B~1``.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache
from typing import Final

from runtime.core.automata import LAST, SLASH, Automaton, Edge, Spans, built, minus, overlap
from runtime.core.globs import automaton, problem

_ALL: Final[Spans] = ((0, LAST),)
_TRAILING: Final[Spans] = ((ord(" "), ord(" ")), (ord("."), ord(".")))
_COLON: Final[Spans] = ((ord(":"), ord(":")),)


def spells(segment: str, directory: str) -> bool:
    """Whether some file system takes a segment of a path for the directory."""
    folded = _folded(segment.split(":")[0]).rstrip(". ")
    return folded == directory.casefold() or _short_name(directory).fullmatch(folded) is not None


@lru_cache(maxsize=1024)
def reaches_directory(pattern: str, directory: str) -> bool:
    """Whether a pattern names a top-level directory or something in it, however it is spelt.

    What is written out is read as loosely as in `spells`, wildcards as they are: since they skip a leading
    dot, ``**`` is no claim on the directory, although it names spellings that begin with an invisible
    character. Those are refused path by path. Of a malformed pattern, a segment with that name suffices.
    """
    if problem(pattern) is not None:
        return any(spells(segment, directory) for segment in re.split(r"[/\\{},]", pattern))
    first = next((segment for segment in pattern.split("/") if segment not in ("", ".")), "")
    readings = dict.fromkeys((pattern, _shown(pattern)))
    return spells(first, directory) or any(
        overlap(automaton((reading,)), _directory(directory)) for reading in readings
    )


def _folded(segment: str) -> str:
    """A segment by the loosest comparison that a file system is known to make."""
    return unicodedata.normalize("NFKC", _shown(segment).casefold())


def _shown(text: str) -> str:
    return "".join(each for each in unicodedata.normalize("NFKC", text) if not _invisible(each))


def _invisible(character: str) -> bool:
    """Format characters, and those of https://www.unicode.org/reports/tr44/#Default_Ignorable_Code_Point."""
    number = ord(character)
    if number < 128:
        return False
    return (
        unicodedata.category(character) == "Cf"
        or number in (0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0)
        or 0x180B <= number <= 0x180F
        or 0xFE00 <= number <= 0xFE0F
        or 0xE0000 <= number <= 0xE0FFF
    )


@lru_cache(maxsize=16)
def _short_name(directory: str) -> re.Pattern[str]:
    letters = re.sub(r"[. ]", "", directory.casefold())
    return re.compile(rf"{re.escape(letters[:6])}~\d+|{re.escape(letters[:2])}[0-9a-f]{{4}}~\d+")


@lru_cache(maxsize=16)
def _directory(directory: str) -> Automaton:
    """A directory in either case, with trailing dots, spaces or a stream, and all that lies below it."""
    texts = [{"/"}, *({letter.lower(), letter.upper()} for letter in directory)]
    edges: list[list[Edge]] = [
        [(tuple((ord(one), ord(one)) for one in sorted(letters)), state + 1)]
        for state, letters in enumerate(texts)
    ]
    name = len(edges)
    stream, below = name + 1, name + 2
    edges.append([(_TRAILING, name), (_COLON, stream), (SLASH, below)])
    edges.append([(minus(_ALL, SLASH), stream), (SLASH, below)])
    edges.append([(_ALL, below)])
    return built(edges, {name, stream, below})
