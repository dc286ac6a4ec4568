"""Entries of network allowlists: what one covers of another.

An entry is ``host:port``, or a host alone for every port. A host is a name (compared without case), a
name with whole labels ``*`` (each stands for exactly one label), an IP address, or a CIDR block::

    api.example.com:443    *.example.com:443    10.0.0.0/24    10.0.0.7:5432    [::1]:8080

Names are never resolved, so a block covers addresses and smaller blocks only. A malformed entry covers
nothing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Final

_LABEL: Final = re.compile(r"\*|(?!-)[\w-]{1,63}(?<!-)")
_ENTRY: Final = re.compile(r"(?:\[(?P<bracketed>[^\]]+)\]|(?P<plain>[^:\[\]]+))(?::(?P<port>\d{1,5}|\*))?")


@dataclass(frozen=True, slots=True)
class _Entry:
    host: tuple[str, ...] | IPv4Network | IPv6Network
    port: int | None

    def covers(self, other: _Entry) -> bool:
        if self.port is not None and self.port != other.port:
            return False
        mine, theirs = self.host, other.host
        if isinstance(mine, IPv4Network) and isinstance(theirs, IPv4Network):
            return theirs.subnet_of(mine)
        if isinstance(mine, IPv6Network) and isinstance(theirs, IPv6Network):
            return theirs.subnet_of(mine)
        if isinstance(mine, tuple) and isinstance(theirs, tuple):
            return len(mine) == len(theirs) and all(
                label in ("*", other_label) for label, other_label in zip(mine, theirs, strict=True)
            )
        return False


@lru_cache(maxsize=4096)
def entry_problem(entry: str) -> str | None:
    """Say why an entry covers nothing, or ``None`` if it is well formed."""
    if _parse(normalise(entry)) is not None:
        return None
    return f"the allowlist entry {entry!r} is not host:port, for example api.example.com:443 or 10.0.0.0/24"


def normalise(entry: str) -> str:
    """The entry in lower case, without surrounding blanks."""
    return entry.strip().lower()


@lru_cache(maxsize=4096)
def covered(entry: str, by: tuple[str, ...]) -> bool:
    """Whether one of the entries ``by`` covers everything that ``entry`` names."""
    inner = _parse(normalise(entry))
    if inner is None:
        return False
    outer = (_parse(normalise(other)) for other in by)
    return any(other is not None and other.covers(inner) for other in outer)


@lru_cache(maxsize=4096)
def _parse(entry: str) -> _Entry | None:
    if entry.count(":") > 1 and not entry.startswith("["):
        entry = f"[{entry}]"
    match = _ENTRY.fullmatch(entry)
    if match is None:
        return None
    port = None if match["port"] in (None, "*") else int(match["port"])
    host = match["bracketed"] or match["plain"]
    try:
        return _Entry(ip_network(host), port)
    except ValueError:
        pass
    labels = tuple(host.removesuffix(".").split("."))
    # Text that looks like an address but is none could be read as one by a resolver: 010.0.0.1, 127.1
    looks_like_address = labels[-1].isdigit() or labels[-1].startswith("0x")
    if match["bracketed"] or looks_like_address or not all(map(_LABEL.fullmatch, labels)):
        return None
    return _Entry(labels, port)
