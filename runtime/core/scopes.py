"""Scopes: what a call may touch, as layers that each only narrow.

The layers are the workspace file, the lane, the task and what the tool requires. `intersect` is the
literal rule of the reference documents, made exact by automata; `allows` and `allows_address` ask about a
single path or address. What a call gets is decided in `runtime.core.scope_grant`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from runtime.core import globs, network, reserved
from runtime.core.model import NetworkScope, PathScope, Scope

RESERVED_ROOT: Final = ".agent-runtime"
"""The runtime's own state directory below the workspace root; no tool ever writes there."""

Access = Literal["read", "write"]
_Patterns = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScopeIntersection:
    """What all layers have in common.

    Attributes:
        scopes: Reads, then writes, then network.
    """

    scopes: tuple[Scope, ...]

    @property
    def denied(self) -> bool:
        """Whether nothing is left."""
        return not self.scopes


class Layer(NamedTuple):
    """The scopes of one layer, sorted by what they are about."""

    read: _Patterns
    write: _Patterns
    network: tuple[NetworkScope, ...]


def layer_of(scopes: Sequence[Scope]) -> Layer:
    """Sort the scopes of a layer."""
    read: list[str] = []
    write: list[str] = []
    networks: list[NetworkScope] = []
    for scope in scopes:
        if scope.type == "network":
            networks.append(scope)
        elif scope.access == "read":
            read.append(scope.pattern)
        else:
            write.append(scope.pattern)
    return Layer(tuple(read), tuple(write), tuple(networks))


def intersect(*layers: Sequence[Scope]) -> ScopeIntersection:
    """Intersect layers literally: a pattern is kept if each other layer has one that contains it.

    Args:
        layers: Usually workspace, lane, task and tool.
    """
    return ScopeIntersection(common_scopes([layer_of(layer) for layer in layers]))


def common_scopes(layers: Sequence[Layer]) -> tuple[Scope, ...]:
    """What `intersect` yields, for layers that are sorted already."""
    reads = _common_patterns(tuple(layer.read for layer in layers))
    writes = _common_patterns(tuple(layer.write for layer in layers))
    return (
        *(PathScope(pattern=pattern, access="read") for pattern in reads),
        *(PathScope(pattern=pattern, access="write") for pattern in writes),
        *_common_network([layer.network for layer in layers]),
    )


def allows(layers: Sequence[Sequence[Scope]], access: Access, path: str) -> bool:
    """Whether every layer has a scope of that access that names the path.

    Args:
        layers: Layers that apply.
        access: What is to be done; to write does not imply to read.
        path: Relative to the workspace root. Absolute paths, ``..`` and backslashes are refused, and so
            is writing to `RESERVED_ROOT` in any spelling.
    """
    segments = globs.path_segments(path)
    if segments is None or (access == "write" and segments and reserved.spells(segments[0], RESERVED_ROOT)):
        return False
    patterns = [layer_of(layer).read if access == "read" else layer_of(layer).write for layer in layers]
    return all(globs.matches(each, path) for each in patterns)


def allows_address(layers: Sequence[Sequence[Scope]], host: str, port: int) -> bool:
    """Whether every layer lets one reach a host (a name or an IP address) at a port."""
    entry = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if "*" in host or "/" in host:
        return False
    limits = [allowed_entries(layer_of(layer).network) for layer in layers]
    return all(entries is None or network.covered(entry, entries) for entries in limits)


def scope_problem(scope: Scope) -> str | None:
    """Say why a scope, or one of its entries, names nothing, and how to mend it; ``None`` if well formed."""
    if scope.type == "path":
        return globs.problem(scope.pattern)
    problems = map(network.entry_problem, scope.allowlist_entries or ())
    return next((problem for problem in problems if problem is not None), None)


@lru_cache(maxsize=4096)  # of facts about patterns, not of decisions on calls
def _common_patterns(layers: tuple[_Patterns, ...]) -> _Patterns:
    # A combination of one pattern per layer exists exactly if each layer has a pattern by itself.
    return tuple(
        pattern
        for pattern in dict.fromkeys(pattern for layer in layers for pattern in layer)
        if all(_in_one(pattern, layer) for layer in layers)
    )


def _in_one(pattern: str, others: _Patterns) -> bool:
    """Whether a single pattern contains it; several together do not count in the literal rule."""
    return not globs.certain_covers(pattern).isdisjoint(others) or any(
        globs.contained(pattern, (other,)) for other in others
    )


def allowed_entries(scopes: Sequence[NetworkScope]) -> tuple[str, ...] | None:
    """Entries a layer allows, ``None`` for everything; an allowlist restricts a ``full`` beside it."""
    lists = [scope.allowlist_entries or () for scope in scopes if scope.posture == "allowlist"]
    if lists:
        return tuple(entry for entries in lists for entry in entries)
    return None if any(scope.posture == "full" for scope in scopes) else ()


def _common_network(layers: Sequence[Sequence[NetworkScope]]) -> tuple[NetworkScope, ...]:
    if not all(layers):
        return ()
    if not any(scope.posture == "allowlist" for layer in layers for scope in layer):
        shared = set.intersection(*({scope.posture for scope in layer} for layer in layers))
        return tuple(NetworkScope(posture=posture) for posture in sorted(shared))
    limits = [entries for entries in map(allowed_entries, layers) if entries is not None]
    names = {network.normalise(entry) for entries in limits for entry in entries}
    common = sorted(name for name in names if all(network.covered(name, entries) for entries in limits))
    return (NetworkScope(posture="allowlist", allowlist_entries=tuple(common)),) if common else ()
