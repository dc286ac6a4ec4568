"""Opens files for a tool, held to the path scopes of its call.

Path scopes are relative to the workspace root, the folder of the workspace file. What a path leads to is
resolved first, and must lie within the scopes as well as the path itself; then the file is opened
directory by directory without following a link, so that what was checked is what is opened, also when
somebody swaps a directory for a link in between.

This guards a tool against its input and its own mistakes. Code in this process can go around it, so receipts
call it advisory. Hard links and mounts look like any file and are not told apart.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any, Final

from runtime.core import globs
from runtime.core.model import PathScope, Scope
from runtime.core.scopes import RESERVED_ROOT, Access, allows
from runtime.errors import ErrorCode, ToolError

_DIRECTORY: Final = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
_FILE: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK

_LINKED_MEANWHILE: Final = (errno.ELOOP, errno.EINVAL)  # from open, and from reading a link that is none

_Identity = tuple[int, int]


def open_file(
    root: str,
    scopes: Sequence[Scope],
    path: str | os.PathLike[str],
    mode: str = "r",
    *,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
) -> IO[Any]:
    """Open a regular file as the built-in ``open`` does.

    Args:
        root: The workspace root.
        scopes: What the call was granted.
        path: Relative to the root.
        mode: As for ``open``: ``r`` needs a read scope, ``w``, ``a`` and ``x`` a write scope, ``+`` both.
        buffering: As for ``open``.
        encoding: As for ``open``.
        errors: As for ``open``.
        newline: As for ``open``.

    Raises:
        ToolError: ``SCOPE_DENIED``, if the path, or what it leads to, lies outside the scopes.
        OSError: As ``open``, for instance if there is no such file.
    """
    text = os.fsdecode(path)
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise _refused(scopes, "read" if "r" in mode else "write", text, "no file has such a name")

    def opener(name: str, flags: int) -> int:
        return _descriptor(root, scopes, name, flags)

    return open(text, mode, buffering, encoding, errors, newline, opener=opener)


def _descriptor(root: str, scopes: Sequence[Scope], path: str, flags: int) -> int:
    accesses = _accesses(flags)
    for access in accesses:
        _require(scopes, access, path, path)
    try:
        descriptor = _checked(os.path.realpath(root), scopes, path, flags, accesses)
    except OSError as error:
        if error.errno not in _LINKED_MEANWHILE:
            raise
        why = "a link took the place of the file, or of a directory, while it was opened"
        raise _refused(scopes, accesses[-1], path, why) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _refused(scopes, accesses[-1], path, "it is no regular file")
    os.set_blocking(descriptor, True)
    return descriptor


def _checked(base: str, scopes: Sequence[Scope], path: str, flags: int, accesses: Sequence[Access]) -> int:
    """Open what a path leads to below a resolved root, if that lies within the scopes as well."""
    names = _resolved(base, path)
    if names is None:
        why = "it leads to the workspace root itself, or out of it"
        raise _refused(scopes, accesses[-1], path, why)
    for access in accesses:
        _require(scopes, access, "/".join(names), path)
    forbidden = _identity(os.path.join(base, RESERVED_ROOT)) if "write" in accesses else None
    descriptor = _opened(base, names, flags, forbidden)
    if descriptor is None:
        raise _refused(scopes, "write", path, f"it lies in {RESERVED_ROOT}, which no tool writes to")
    return descriptor


def _accesses(flags: int) -> tuple[Access, ...]:
    how = flags & (os.O_RDONLY | os.O_WRONLY | os.O_RDWR)
    if how == os.O_RDONLY:
        return ("read",)
    return ("write",) if how == os.O_WRONLY else ("read", "write")


def _require(scopes: Sequence[Scope], access: Access, path: str, asked: str) -> None:
    if not allows([scopes], access, path):
        leads = "" if path == asked else f", to which it leads: {path!r}"
        raise _refused(scopes, access, asked, f"no {access} scope of this call names it{leads}")


def _resolved(base: str, path: str) -> list[str] | None:
    """The names below a resolved root that lead to what a path means; None if that is elsewhere."""
    target = os.path.realpath(os.path.join(base, *(globs.path_segments(path) or ())))
    if target == base or os.path.commonpath([base, target]) != base:
        return None
    return os.path.relpath(target, base).split(os.sep)


def _opened(base: str, names: Sequence[str], flags: int, forbidden: _Identity | None) -> int | None:
    """A descriptor of the file; None if one of its directories is the forbidden one."""
    with ExitStack() as held:
        directory = _enter(held, base, None)
        for name in names[:-1]:
            directory = _enter(held, name, directory)
            if forbidden is not None and _identity(directory) == forbidden:
                return None
        return os.open(names[-1], flags | _FILE, 0o666, dir_fd=directory)


def _enter(held: ExitStack, name: str, parent: int | None) -> int:
    descriptor = os.open(name, _DIRECTORY, dir_fd=parent)
    held.callback(os.close, descriptor)
    return descriptor


def _identity(place: str | int) -> _Identity | None:
    try:
        found = os.stat(place)
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _refused(scopes: Sequence[Scope], access: Access, path: str, why: str) -> ToolError:
    given = [scope.pattern for scope in scopes if isinstance(scope, PathScope) and scope.access == access]
    return ToolError(
        f"the call may not {access} {path!r}: {why}; its {access} scopes are "
        f"{', '.join(given) or 'none'}, relative to the workspace root — name a path within them, or add a "
        "scope to the tool, and to all that narrows it",
        code=ErrorCode.SCOPE_DENIED,
        details={"access": access, "path": path, "scope_allowed": given},
    )
