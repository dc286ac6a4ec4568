"""Files that commands read and write: new ones are private to their owner; unfinished ones are removed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def new_file(path: Path | None) -> Iterator[IO[str]]:
    """A new file to write, or standard output; one that could not be finished is removed.

    Raises:
        InvalidInput: If it exists or cannot be written.
    """
    import os
    import sys

    from runtime.errors import InvalidInput

    if path is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InvalidInput(f"{path} exists; name a new file, or remove it") from None
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written ({error.strerror}); name another file") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="strict", newline="\n") as file:
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


@contextmanager
def old_file(path: Path) -> Iterator[IO[bytes]]:
    """A file to read.

    Raises:
        InvalidInput: If it cannot be read.
    """
    from runtime.errors import InvalidInput

    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read ({error.strerror}); name a file that can") from error
