"""What a call gets of the scopes that its tool requires.

The workspace file, the lane and the tool do not change while a process runs, so what they say together is
worked out once (`compile_grant`). A call brings the task's scopes, which are compared with what the tool
requires each time (`ScopeRule.under`): nothing here remembers a decision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from runtime.core import globs, network, reserved
from runtime.core.model import NetworkScope, PathScope, Scope
from runtime.core.scopes import (
    RESERVED_ROOT,
    Layer,
    allowed_entries,
    common_scopes,
    layer_of,
    scope_problem,
)

ScopesMode = Literal["all", "any"]
LayerName = Literal["workspace", "lane", "task"]


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


_Covers = tuple[tuple[str, frozenset[str]], ...]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a tool requires, made ready for comparing with a layer.

    Attributes:
        layer: The scopes, sorted.
        read: Patterns, each with texts that contain it for certain.
        write: The same.
        entries: Of the network scopes, where all that they ask for is listed and well formed.
    """

    layer: Layer
    read: _Covers
    write: _Covers
    entries: frozenset[str] | None

    @staticmethod
    def of(required: Sequence[Scope]) -> Wanted:
        """Make ready what a tool declares."""
        layer = layer_of(required)
        listed = [entry for scope in layer.network for entry in scope.allowlist_entries or ()]
        plain = all(scope.posture != "full" for scope in layer.network)
        plain = plain and not any(network.entry_problem(entry) for entry in listed)
        return Wanted(layer, _covers(layer.read), _covers(layer.write), frozenset(listed) if plain else None)


def _covers(patterns: Sequence[str]) -> _Covers:
    return tuple((pattern, globs.certain_covers(pattern)) for pattern in patterns)


@dataclass(frozen=True, slots=True)
class ScopeRule:
    """What one tool gets in one lane, but for what the task allows.

    Attributes:
        required: What the tool declares.
        mode: ``all`` or ``any``, see `grant_scopes`.
        wanted: What is required, made ready for comparing.
        fixed: The layers that do not change, sorted.
        standing: The grant where the task narrows nothing.
    """

    required: tuple[Scope, ...]
    mode: ScopesMode
    wanted: Wanted
    fixed: tuple[Layer, ...]
    standing: ScopeGrant

    def under(self, task: Sequence[Scope] | None) -> ScopeGrant:
        """The grant of a call.

        Args:
            task: The context's scopes; ``None`` narrows nothing, an empty list allows nothing.
        """
        if task is None or not self.required:
            return self.standing
        layer = layer_of(task)
        if self.mode == "any":
            granted = common_scopes([*self.fixed, layer, self.wanted.layer])
            return _grant(self.standing.reserved, self.standing.missing, granted, lacking=not granted)
        missing = _missing("task", layer, self.wanted)
        if not missing:
            return self.standing
        return _grant(self.standing.reserved, (*self.standing.missing, *missing), (), lacking=True)


def compile_grant(
    workspace: Sequence[Scope],
    lane: Sequence[Scope] | None,
    tool_required: Sequence[Scope],
    mode: ScopesMode = "all",
) -> ScopeRule:
    """Compare what a tool requires with the layers that do not change; see `grant_scopes`."""
    wanted = Wanted.of(tool_required)
    named: list[tuple[LayerName, Sequence[Scope] | None]] = [("workspace", workspace), ("lane", lane)]
    fixed = [(name, layer_of(scopes)) for name, scopes in named if scopes is not None]
    missing = [MissingScope(scope, None) for scope in tool_required if scope_problem(scope) is not None]
    granted = tuple(tool_required)
    if mode == "all":
        missing += [each for name, layer in fixed for each in _missing(name, layer, wanted)]
        lacking = False
    else:
        granted = common_scopes([*(layer for _, layer in fixed), wanted.layer])
        lacking = not granted
    forbidden = tuple(
        PathScope(pattern=pattern, access="write")
        for pattern in wanted.layer.write
        if reserved.reaches_directory(pattern, RESERVED_ROOT)
    )
    standing = _grant(forbidden, tuple(missing), granted, lacking=lacking)
    return ScopeRule(tuple(tool_required), mode, wanted, tuple(layer for _, layer in fixed), standing)


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
    return compile_grant(workspace, lane, tool_required, mode).under(task)


def _grant(
    forbidden: tuple[PathScope, ...],
    missing: tuple[MissingScope, ...],
    granted: tuple[Scope, ...],
    *,
    lacking: bool,
) -> ScopeGrant:
    denied = bool(forbidden or missing or lacking)
    return ScopeGrant(() if denied else granted, denied, missing, forbidden)


def _missing(name: LayerName, layer: Layer, wanted: Wanted) -> list[MissingScope]:
    missing = [
        MissingScope(PathScope(pattern=pattern, access="read"), name)
        for pattern in _outside(wanted.read, layer.read)
    ]
    missing += [
        MissingScope(PathScope(pattern=pattern, access="write"), name)
        for pattern in _outside(wanted.write, layer.write)
    ]
    if wanted.entries != frozenset():
        missing += [MissingScope(scope, name) for scope in _outside_network(wanted, layer)]
    return missing


def _outside(wanted: _Covers, allowed: Sequence[str]) -> list[str]:
    known = frozenset(allowed)
    return [
        pattern
        for pattern, covers in wanted
        if covers.isdisjoint(known) and not globs.contained(pattern, known)
    ]


def _outside_network(wanted: Wanted, layer: Layer) -> list[NetworkScope]:
    allowed = allowed_entries(layer.network)
    if allowed is None or (wanted.entries is not None and wanted.entries.issubset(allowed)):
        return []
    refused = (_refused_network(scope, allowed) for scope in wanted.layer.network)
    return [scope for scope in refused if scope is not None]


def _refused_network(scope: NetworkScope, allowed: tuple[str, ...]) -> NetworkScope | None:
    if scope.posture == "off":
        return None
    if scope.posture == "full":
        return scope
    entries = tuple(entry for entry in scope.allowlist_entries or () if not network.covered(entry, allowed))
    return NetworkScope(posture="allowlist", allowlist_entries=entries) if entries else None
