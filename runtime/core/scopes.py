"""Scopes: what a call may touch, as layers that each only narrow.

The layers are the workspace file, the lane, the task and what the tool requires. `intersect` is the
literal rule of the reference documents, made exact by automata; `allows` asks about a single path;
`grant_scopes` is what the kernel decides a call with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from runtime.core import globs, network
from runtime.core.model import NetworkScope, PathScope, Scope

RESERVED_ROOT: Final = ".agent-runtime"
"""The runtime's own state directory below the workspace root; no tool ever writes there."""

Access = Literal["read", "write"]
ScopesMode = Literal["all", "any"]
LayerName = Literal["workspace", "lane", "task"]

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


@dataclass(frozen=True, slots=True)
class MissingScope:
    """A scope that a tool requires and does not get.

    Attributes:
        scope: What is required; of an allowlist only the entries that are refused.
        layer: The first layer that does not allow it; ``None`` if the scope itself is malformed.
    """

    scope: Scope
    layer: LayerName | None


@dataclass(frozen=True, slots=True)
class ScopeGrant:
    """What a tool gets of the scopes it requires.

    Attributes:
        granted: What the call may touch; empty if denied.
        denied: Whether the call is refused.
        missing: What is refused and by which layer.
        reserved: Required write scopes that reach `RESERVED_ROOT`.
    """

    granted: tuple[Scope, ...]
    denied: bool
    missing: tuple[MissingScope, ...] = ()
    reserved: tuple[PathScope, ...] = ()


class _Layer(NamedTuple):
    """The scopes of one layer, sorted by what they are about."""

    read: _Patterns
    write: _Patterns
    network: tuple[NetworkScope, ...]


def _layer(scopes: Sequence[Scope]) -> _Layer:
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
    return _Layer(tuple(read), tuple(write), tuple(networks))


def intersect(*layers: Sequence[Scope]) -> ScopeIntersection:
    """Intersect layers literally: a pattern is kept if each other layer has one that contains it.

    Args:
        layers: Usually workspace, lane, task and tool.
    """
    return ScopeIntersection(_intersection([_layer(layer) for layer in layers]))


def _intersection(layers: Sequence[_Layer]) -> tuple[Scope, ...]:
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
    if segments is None or (access == "write" and segments and globs.spells(segments[0], RESERVED_ROOT)):
        return False
    patterns = [_layer(layer).read if access == "read" else _layer(layer).write for layer in layers]
    return all(globs.matches(each, path) for each in patterns)


def allows_address(layers: Sequence[Sequence[Scope]], host: str, port: int) -> bool:
    """Whether every layer lets one reach a host (a name or an IP address) at a port."""
    entry = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if "*" in host or "/" in host:
        return False
    reach = [_reach(_layer(layer).network) for layer in layers]
    return all(entries is None or network.covered(entry, entries) for entries in reach)


def scope_problem(scope: Scope) -> str | None:
    """Say why a scope, or one of its entries, names nothing, and how to mend it; ``None`` if well formed."""
    if scope.type == "path":
        return globs.problem(scope.pattern)
    problems = map(network.entry_problem, scope.allowlist_entries or ())
    return next((problem for problem in problems if problem is not None), None)


def grant_scopes(
    workspace: Sequence[Scope],
    lane: Sequence[Scope] | None,
    task: Sequence[Scope] | None,
    tool_required: Sequence[Scope],
    mode: ScopesMode = "all",
) -> ScopeGrant:
    """Decide what a tool gets of the scopes it requires.

    In mode ``all`` every layer must allow everything that the tool requires, so that a tool that requires
    nothing needs nothing. In mode ``any``, the reference's, a non-empty intersection of any kind is enough,
    and there is none where nothing is required.

    Args:
        workspace: The ceiling.
        lane: The lane's scopes; ``None`` narrows nothing.
        task: The context's scopes; ``None`` narrows nothing, an empty list allows nothing.
        tool_required: What the tool declares.
        mode: See above.
    """
    required = _layer(tool_required)
    named: list[tuple[LayerName, Sequence[Scope] | None]] = [
        ("workspace", workspace),
        ("lane", lane),
        ("task", task),
    ]
    layers = [(name, _layer(scopes)) for name, scopes in named if scopes is not None]
    missing = [MissingScope(scope, None) for scope in tool_required if scope_problem(scope) is not None]
    if mode == "all":
        missing += [each for name, layer in layers for each in _missing(name, layer, required)]
        granted = tuple(tool_required)
    else:
        granted = _intersection([*(layer for _, layer in layers), required])
    reserved = tuple(
        PathScope(pattern=pattern, access="write")
        for pattern in required.write
        if globs.reaches_directory(pattern, RESERVED_ROOT)
    )
    lacking = not granted and (mode == "any" or bool(tool_required))
    denied = bool(reserved or missing or lacking)
    return ScopeGrant(() if denied else granted, denied, tuple(missing), reserved)


def _missing(name: LayerName, layer: _Layer, required: _Layer) -> list[MissingScope]:
    missing: list[MissingScope] = []
    missing += [
        MissingScope(PathScope(pattern=pattern, access="read"), name)
        for pattern in _uncovered(required.read, layer.read)
    ]
    missing += [
        MissingScope(PathScope(pattern=pattern, access="write"), name)
        for pattern in _uncovered(required.write, layer.write)
    ]
    refused = (_refused_network(scope, _reach(layer.network)) for scope in required.network)
    return missing + [MissingScope(scope, name) for scope in refused if scope is not None]


def _refused_network(scope: NetworkScope, reach: tuple[str, ...] | None) -> NetworkScope | None:
    if reach is None or scope.posture == "off":
        return None
    if scope.posture == "full":
        return scope
    entries = tuple(entry for entry in scope.allowlist_entries or () if not network.covered(entry, reach))
    return NetworkScope(posture="allowlist", allowlist_entries=entries) if entries else None


# Caches below hold facts about patterns, never a decision on a call.


@lru_cache(maxsize=4096)
def _uncovered(required: _Patterns, granted: _Patterns) -> _Patterns:
    return tuple(pattern for pattern in required if not globs.contained(pattern, granted))


@lru_cache(maxsize=4096)
def _common_patterns(layers: tuple[_Patterns, ...]) -> _Patterns:
    # A combination of one pattern per layer exists exactly if each layer has a pattern by itself.
    return tuple(
        pattern
        for pattern in dict.fromkeys(pattern for layer in layers for pattern in layer)
        if all(any(globs.contained(pattern, (other,)) for other in layer) for layer in layers)
    )


def _reach(scopes: Sequence[NetworkScope]) -> tuple[str, ...] | None:
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
    limits = [entries for entries in map(_reach, layers) if entries is not None]
    names = {network.normalise(entry) for entries in limits for entry in entries}
    common = sorted(name for name in names if all(network.covered(name, entries) for entries in limits))
    return (NetworkScope(posture="allowlist", allowlist_entries=tuple(common)),) if common else ()
