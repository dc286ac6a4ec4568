"""Tool names on the wire: both protocols allow only letters, digits, ``_`` and ``-``, up to 64 of them.

The table is made for one request from all names in it, those of the history included, so that it is
reversible and free of collisions there. (Messages allow 128 characters; 64 serve both.)
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

MAX_NAME = 64
_LEGAL = re.compile(r"[a-zA-Z0-9_-]{1,64}")
_ILLEGAL = re.compile(r"[^a-zA-Z0-9_-]")


class ToolNames:
    """A reversible table between tool names and names on the wire."""

    def __init__(self, names: Iterable[str]) -> None:
        unique = sorted(set(names))
        # Legal names come first and stand for themselves, so that no other name can take their place.
        self._wire = {name: name for name in unique if _LEGAL.fullmatch(name)}
        self._own = dict(self._wire)
        for name in unique:
            if name not in self._wire:
                wire = self._free(name)
                self._wire[name], self._own[wire] = wire, name

    def _free(self, name: str) -> str:
        plain = _ILLEGAL.sub("_", name)
        if 0 < len(plain) <= MAX_NAME and plain not in self._own:
            return plain
        digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()
        tries = (f"{plain[: MAX_NAME - 1 - size]}_{digest[:size]}" for size in range(8, MAX_NAME - 1))
        return next(wire for wire in tries if wire not in self._own)

    def to_wire(self, name: str) -> str:
        """The wire name of a tool that the table was made with."""
        return self._wire[name]

    def from_wire(self, wire: str) -> str:
        """The tool's own name; a name that the request did not hold is returned as it is."""
        return self._own.get(wire, wire)
