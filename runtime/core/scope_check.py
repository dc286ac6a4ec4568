"""What is wrong with the scopes that a configuration lists: each entry that could never allow anything."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from runtime.core.globs import problem
from runtime.core.model import Scope
from runtime.core.network import entry_problem

KeyPath = tuple[str | int, ...]


def bad_scopes(
    workspace: Iterable[Scope], lanes: Sequence[Iterable[Scope] | None]
) -> Iterator[tuple[KeyPath, str]]:
    """The malformed patterns and allowlist entries of a workspace file.

    Args:
        workspace: ``security.allowed_scopes``.
        lanes: ``allowed_scopes`` of each lane, None where it has none.

    Yields:
        The path of keys that leads to the value in the file, and what is wrong with the value and how to
        mend it.
    """
    yield from _malformed(("security", "allowed_scopes"), workspace)
    for index, scopes in enumerate(lanes):
        yield from _malformed(("lanes", index, "allowed_scopes"), scopes or ())


def _malformed(path: KeyPath, scopes: Iterable[Scope]) -> Iterator[tuple[KeyPath, str]]:
    for index, scope in enumerate(scopes):
        if scope.type == "path":
            found = problem(scope.pattern)
            if found is not None:
                yield (*path, index, "pattern"), found
            continue
        for number, entry in enumerate(scope.allowlist_entries or ()):
            found = entry_problem(entry)
            if found is not None:
                yield (*path, index, "allowlist_entries", number), found
