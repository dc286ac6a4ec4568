"""What every command shares: JSON on standard output, all else on standard error, log lines, signals."""

from __future__ import annotations

import json
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Self

from rich.console import Console
from rich.text import Text

QUIET = (": INFO/", "agent_runtime.sweep")
"""A line with all of these says that the sweep ran, which it does twice a second."""
COLOURS = ("cyan", "magenta", "yellow", "green", "blue")


def write_json(document: Any) -> None:
    """Print the one JSON document of a command."""
    sys.stdout.write(json.dumps(document, ensure_ascii=False, indent=2, default=str) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Tell a person something that is not the command's result."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


class LogFiles:
    """A sink for the log lines of children: one file per child, and if wanted each line with a prefix.

    Args:
        directory: Where the files go; made if missing.
        console: Also shows each line there, prefixed by the child's name.
    """

    def __init__(self, directory: Path, console: Console | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._console = console
        self._files: dict[str, IO[str]] = {}
        self._lock = threading.Lock()

    def __call__(self, name: str, line: str) -> None:
        """Take one line of the child ``name``."""
        if all(part in line for part in QUIET):
            return
        with self._lock:
            if name not in self._files:
                self._files[name] = (self._directory / f"{name}.log").open("a", encoding="utf-8", buffering=1)
            self._files[name].write(line + "\n")
            if self._console is not None:
                self._show(self._console, name, line)

    def _show(self, console: Console, name: str, line: str) -> None:
        colour = COLOURS[list(self._files).index(name) % len(COLOURS)]
        try:
            console.print(Text(f"{name:>7} │ ", style=colour) + Text(line), soft_wrap=True)
        except (OSError, SystemExit):
            # Whoever read the lines is gone (rich makes a SystemExit of it); the children must not stall.
            self._console = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._lock:
            for file in self._files.values():
                file.close()
            self._files.clear()


@contextmanager
def stoppable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP end the block as Ctrl-C does, so that all that it started is stopped."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    kept = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
