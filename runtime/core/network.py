"""Entries of network allowlists: what some of them cover of another.

An entry is a host and a port. A host is a name (ASCII, compared without case), a name with whole labels ``*``
(each stands for exactly one label), an IP address, or a CIDR block. A port is a number, a range, or ``*``; an
entry without a port names every port, and a URL without a port has that of its scheme (80 or 443)::

    api.example.com:443    *.example.com:443    10.0.0.0/24    10.0.0.7:5432    [::1]:8000-8999

Names are never resolved, so a block covers addresses and smaller blocks only. The IPv4-mapped addresses of
IPv6, ``::ffff:10.0.0.7`` (RFC 4291, section 2.5.5.2), are the IPv4 addresses; a larger block around them,
such as ``::/0``, says nothing of IPv4. A malformed entry covers nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Network, ip_network
from typing import Final

_LABEL: Final = re.compile(r"\*|(?!-)[a-z0-9_-]{1,63}(?<!-)")
_ENTRY: Final = re.compile(
    r"(?:\[(?P<bracketed>[^\]]+)\]|(?P<plain>[^:\[\]]+))(?::(?P<port>\d{1,5}(?:-\d{1,5})?|\*))?", re.ASCII
)
_EVERY_PORT: Final = (1, 65535)

_Spans = tuple[tuple[int, int], ...]
_MAPPED: Final = (0xFFFF << 32, (0xFFFF << 32) + 0xFFFFFFFF)
"""``::ffff:0:0/96``, where IPv4 lies among the numbers of IPv6."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry.

    Attributes:
        labels: Of a name; empty for addresses.
        addresses: First and last numbers of a block, IPv4 in its mapped form; empty for names.
        ports: First and last.
    """

    labels: tuple[str, ...]
    addresses: _Spans
    ports: tuple[int, int]

    def names(self, labels: tuple[str, ...]) -> bool:
        """Whether the name covers another one, which may hold ``*`` as well."""
        return len(self.labels) == len(labels) and all(
            mine in ("*", theirs) for mine, theirs in zip(self.labels, labels, strict=True)
        )


@lru_cache(maxsize=4096)
def entry_problem(entry: str) -> str | None:
    """Say why an entry covers nothing, or ``None`` if it is well formed."""
    text = normalise(entry)
    if _parse(text) is not None:
        return None
    if not text.isascii():
        return f"the allowlist entry {entry!r} is not ASCII — write the host in its xn-- form"
    match = _match(text)
    if match is not None and _ports(match["port"]) is None:
        return (
            f"the allowlist entry {entry!r} names no port between 1 and 65535 — write one, or a range 1-1024"
        )
    if match is not None and "/" in text:
        return f"the allowlist entry {entry!r} is no block — write its first address, as in 10.0.0.0/24"
    return (
        f"the allowlist entry {entry!r} is not host:port — write it like api.example.com:443 or 10.0.0.0/24"
    )


def normalise(entry: str) -> str:
    """The entry in lower case, without surrounding blanks."""
    return entry.strip().lower()


def covered(entry: str, by: Collection[str]) -> bool:
    """Whether the entries ``by`` together cover everything that ``entry`` names; exactly.

    A name is covered port by port: since a ``*`` stands for any label, and there is always one that nobody
    lists, only an entry that covers all of the name at a port helps there. Addresses are covered as
    intervals.
    """
    wanted = _parse(normalise(entry))
    if wanted is None:
        return False
    if entry in by:
        return True
    # Names and addresses never cover each other, and to parse is what takes time here.
    near = (other for other in by if not wanted.addresses or _may_be_address(other))
    parsed = (_parse(normalise(other)) for other in near)
    return _covered(wanted, [other for other in parsed if other is not None and _may_help(other, wanted)])


def _may_be_address(entry: str) -> bool:
    return entry[:1].isdigit() or entry.count(":") > 1 or not entry[:1].isalnum()


def _may_help(other: _Entry, wanted: _Entry) -> bool:
    if other.ports[1] < wanted.ports[0] or wanted.ports[1] < other.ports[0]:
        return False
    return other.names(wanted.labels) if wanted.labels else bool(other.addresses)


def _covered(wanted: _Entry, others: list[_Entry]) -> bool:
    first, last = wanted.ports
    starts = {other.ports[0] for other in others} | {other.ports[1] + 1 for other in others}
    for port in (first, *(start for start in starts if first < start <= last)):
        here = [other for other in others if other.ports[0] <= port <= other.ports[1]]
        if not here:
            return False
        spans = sorted(span for other in here for span in other.addresses)
        if not all(_filled(low, high, spans) for low, high in wanted.addresses):
            return False
    return True


def _filled(low: int, high: int, spans: Iterable[tuple[int, int]]) -> bool:
    """Whether sorted spans leave no gap between two numbers."""
    for start, end in spans:
        if start > low:
            return False
        low = max(low, end + 1)
        if low > high:
            return True
    return False


# --- from text to entries -------------------------------------------------------------------------


@lru_cache(maxsize=16384)
def _parse(entry: str) -> _Entry | None:
    match = _match(entry)
    ports = _ports(match["port"]) if match is not None else None
    if match is None or ports is None:
        return None
    host = match["bracketed"] or match["plain"]
    if ":" in host or host[0].isdigit():
        addresses = _addresses(host)
        if addresses is not None:
            return _Entry((), addresses, ports)
    labels = tuple(host.removesuffix(".").split("."))
    # Text that looks like an address but is none could be read as one by a resolver: 010.0.0.1, 127.1
    looks_like_address = labels[-1].isdigit() or labels[-1].startswith("0x")
    if match["bracketed"] or looks_like_address or not all(map(_LABEL.fullmatch, labels)):
        return None
    return _Entry(labels, (), ports)


def _match(entry: str) -> re.Match[str] | None:
    if entry.count(":") > 1 and not entry.startswith("["):
        entry = f"[{entry}]"
    return _ENTRY.fullmatch(entry)


def _ports(text: str | None) -> tuple[int, int] | None:
    if text is None or text == "*":
        return _EVERY_PORT
    first, _, last = text.partition("-")
    ports = (int(first), int(last or first))
    return ports if 1 <= ports[0] <= ports[1] <= _EVERY_PORT[1] else None


def _addresses(host: str) -> _Spans | None:
    try:
        block = ip_network(host)
    except ValueError:
        return None
    low, high = int(block.network_address), int(block.broadcast_address)
    if isinstance(block, IPv4Network):
        return ((low + _MAPPED[0], high + _MAPPED[0]),)
    if _MAPPED[0] <= low and high <= _MAPPED[1]:
        return ((low, high),)
    around = ((low, min(high, _MAPPED[0] - 1)), (max(low, _MAPPED[1] + 1), high))
    return tuple(span for span in around if span[0] <= span[1])
