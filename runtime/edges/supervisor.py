"""Starts named child processes, forwards their log lines, and leaves none of them behind.

Each child leads its own session and process group, so that a Ctrl-C on the terminal reaches only the parent,
which then stops the children in good order. A guardian outlives the parent by a moment: when the parent
is gone, however it went, the guardian kills every group that was still alive.
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from runtime.errors import AgentRuntimeError, ConfigurationError

LineSink = Callable[[str, str], None]
"""Takes the name of a child and one of its log lines, without the line end."""

TAIL_LINES = 20
HEALTHY_AFTER_SECONDS = 60.0
MAX_RESTART_DELAY_SECONDS = 10.0

# Every line replaces the list of groups; end of input means that the parent is gone.
GUARDIAN_SCRIPT = """
groups=
while read -r line; do groups=$line; done
for group in $groups; do kill -s KILL -- "-$group" 2>/dev/null; done
"""


class ChildFailed(AgentRuntimeError):
    """A child process ended although nobody asked it to, or did not become ready in time."""

    code = "CHILD_FAILED"


@dataclass(frozen=True)
class Command:
    """How to start one child.

    Attributes:
        name: Prefix of its log lines and name in errors.
        argv: Program and arguments.
        env: Its whole environment; ``None`` inherits the parent's.
        stdin: Text written to its standard input, which is then closed.
        ready: Part of the log line that says it is ready; ``None`` means ready at once.
        pass_fds: File descriptors that it inherits.
        cwd: Working directory; ``None`` inherits the parent's.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] | None = None
    stdin: str | None = None
    ready: str | None = None
    pass_fds: tuple[int, ...] = ()
    cwd: Path | None = None


@dataclass(frozen=True)
class Exit:
    """An end that nobody asked for: the child's name, its exit code (negative: a signal) and last lines."""

    name: str
    code: int
    last_lines: tuple[str, ...]

    def __str__(self) -> str:
        how = f"was killed by signal {-self.code}" if self.code < 0 else f"exited with code {self.code}"
        tail = "".join(f"\n  {line}" for line in self.last_lines) or " (it printed nothing)"
        return f"{self.name} {how}; its last lines:{tail}"


class Guardian:
    """Kills the process groups it was told of once this process is gone, even by ``kill -9``.

    A shell that reads a pipe serves: this process holds the only write end, so the system closes it for us.
    Unlike ``PR_SET_PDEATHSIG`` this reaches grandchildren, does not depend on the thread that started the
    child, and works outside Linux.
    """

    def __init__(self) -> None:
        read_end, self._write_end = os.pipe()
        try:
            self._shell = subprocess.Popen(
                ["/bin/sh", "-c", GUARDIAN_SCRIPT],
                stdin=read_end,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def watch(self, groups: list[int]) -> None:
        """Replace the groups to kill with ``groups``."""
        with suppress(BrokenPipeError):
            os.write(self._write_end, (" ".join(map(str, groups)) + "\n").encode())

    def close(self) -> None:
        """Forget all groups and end."""
        self.watch([])
        os.close(self._write_end)
        self._shell.wait()


@dataclass
class Child:
    """One running child: its process, the end of its log, and whether it is ready."""

    command: Command
    process: subprocess.Popen[str]
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    settled: threading.Event = field(default_factory=threading.Event)
    reader: threading.Thread | None = None
    started_at: float = field(default_factory=time.monotonic)

    def forward(self, sink: LineSink) -> None:
        """Pass each line on until the output closes; note the line that says it is ready."""
        stream: IO[str] = self.process.stdout  # type: ignore[assignment]
        with stream:
            for line in stream:
                text = line.rstrip("\r\n")
                self.tail.append(text)
                sink(self.command.name, text)
                if self.command.ready is not None and self.command.ready in text:
                    self.settled.set()

    def exit(self) -> Exit:
        """How it ended; only for a child that has."""
        return Exit(self.command.name, self.process.wait(), tuple(self.tail))

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the child and all that it started."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, number)


class Supervisor:
    """Runs children until `stop`, restarting those that end by themselves at most ``max_restarts`` times.

    Args:
        sink: Receives every log line, from several threads.
        max_restarts: How often in a row a child that ended by itself is started again; 0 fails at once.
        stop_timeout: Seconds between SIGTERM and SIGKILL in `stop`.
    """

    def __init__(self, sink: LineSink, *, max_restarts: int = 0, stop_timeout: float = 10.0) -> None:
        self._sink = sink
        self._max_restarts = max_restarts
        self._stop_timeout = stop_timeout
        self._guardian = Guardian()
        self._lock = threading.Lock()
        self._children: dict[str, Child] = {}
        self._stopping = threading.Event()
        self._failures: queue.Queue[Exit] = queue.Queue()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids of the children by name."""
        with self._lock:
            return {name: child.process.pid for name, child in self._children.items()}

    def start(self, command: Command) -> None:
        """Start one child; returns before it is ready.

        Raises:
            ConfigurationError: Its program cannot be started.
        """
        child = self._spawn(command)
        threading.Thread(
            target=self._attend, args=(child,), name=f"attend-{command.name}", daemon=True
        ).start()

    def wait_ready(self, name: str, timeout: float) -> None:
        """Wait until the child ``name`` printed its ready line.

        Raises:
            ChildFailed: It ended first, or was not ready after ``timeout`` seconds.
        """
        child = self._children[name]
        if child.settled.wait(timeout) and child.process.poll() is None:
            return
        if child.process.poll() is not None:
            raise ChildFailed(f"{child.exit()}\nread the lines above and mend what they name")
        lines = "".join(f"\n  {line}" for line in child.tail)
        raise ChildFailed(f"{name} was not ready after {timeout:g} s; its last lines:{lines}")

    def failure(self, timeout: float | None = None) -> Exit | None:
        """Wait for a child to end for good by itself; ``None`` after ``timeout`` seconds without one."""
        try:
            return self._failures.get(timeout=timeout)
        except queue.Empty:
            return None

    def check(self) -> None:
        """Raise if a child ended for good by itself.

        Raises:
            ChildFailed: With its name, exit code and last lines.
        """
        try:
            exit_ = self._failures.get_nowait()
        except queue.Empty:
            return
        self._failures.put(exit_)
        raise ChildFailed(str(exit_))

    def stop(self) -> None:
        """SIGTERM all, wait for each up to the stop timeout, SIGKILL what is left; nothing survives."""
        self._stopping.set()
        with self._lock:
            children = list(self._children.values())
        try:
            for child in reversed(children):
                with suppress(ProcessLookupError):
                    child.process.terminate()
            deadline = time.monotonic() + self._stop_timeout
            for child in reversed(children):
                with suppress(subprocess.TimeoutExpired):
                    child.process.wait(max(0.0, deadline - time.monotonic()))
        finally:
            for child in children:
                child.signal_group(signal.SIGKILL)
                child.process.wait()
                if child.reader is not None:
                    child.reader.join(timeout=1.0)
            self._guardian.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _spawn(self, command: Command) -> Child:
        with self._lock:
            if self._stopping.is_set():
                raise ChildFailed(f"cannot start {command.name}: the supervisor is stopping")
            try:
                process = _popen(command)
            except OSError as error:
                raise ConfigurationError(
                    f"cannot start {command.name} ({command.argv[0]}): {error}"
                ) from error
            child = Child(command, process)
            self._children[command.name] = child
            self._guardian.watch([each.process.pid for each in self._children.values()])
        if command.ready is None:
            child.settled.set()
        child.reader = threading.Thread(
            target=child.forward, args=(self._sink,), name=f"log-{command.name}", daemon=True
        )
        child.reader.start()
        return child

    def _attend(self, child: Child) -> None:
        """Follow one child through its restarts until it fails for good or all is stopped."""
        restarts = 0
        while True:
            child.process.wait()
            if self._stopping.is_set():
                return
            child.signal_group(signal.SIGKILL)
            if child.reader is not None:
                child.reader.join(timeout=1.0)
            child.settled.set()
            if time.monotonic() - child.started_at > HEALTHY_AFTER_SECONDS:
                restarts = 0
            exit_ = child.exit()
            if restarts >= self._max_restarts:
                self._failures.put(exit_)
                return
            delay = min(2.0**restarts, MAX_RESTART_DELAY_SECONDS)
            restarts += 1
            news = f"ended by itself with code {exit_.code}; restart {restarts} in {delay:g} s"
            self._sink(child.command.name, news)
            if self._stopping.wait(delay):
                return
            with suppress(AgentRuntimeError):
                child = self._spawn(child.command)


def _popen(command: Command) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        command.argv,
        stdin=subprocess.DEVNULL if command.stdin is None else subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=None if command.env is None else dict(command.env),
        pass_fds=command.pass_fds,
        cwd=command.cwd,
        start_new_session=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if command.stdin is not None and process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.write(command.stdin)
            process.stdin.close()
    return process
