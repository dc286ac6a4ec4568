"""A real stack for tests: worker processes and beat beside a Valkey, each of which can be killed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil

from runtime.edges.embedded import stack_commands
from runtime.edges.supervisor import Command, Supervisor
from runtime.settings import Settings

FAST = {
    "AGENT_RUNTIME_LEASE_SECONDS": "2",
    "AGENT_RUNTIME_HEARTBEAT_SECONDS": "0.5",
    "AGENT_RUNTIME_REPUBLISH_SECONDS": "1",
    "AGENT_RUNTIME_REPUBLISH_MAX_SECONDS": "4",
}
"""Leases short enough to run out in a test."""


class Stack:
    """Worker processes of one deployment, by name."""

    def __init__(self, supervisor: Supervisor, commands: dict[str, Command], log: list[str]) -> None:
        self.supervisor = supervisor
        self.commands = commands
        self.log = log

    def pid(self, name: str) -> int:
        return self.supervisor.pids[name]

    def family(self, name: str) -> list[psutil.Process]:
        """A process and all that it started, the youngest first."""
        parent = psutil.Process(self.pid(name))
        return [*parent.children(recursive=True), parent]

    def kill(self, name: str) -> None:
        """Kill a process and all its children, as a machine that loses power does."""
        family = self.family(name)
        for process in family:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(family, timeout=10)

    def freeze(self, name: str) -> list[psutil.Process]:
        """Stop a process and all its children, as a machine that is suspended does; return them."""
        family = self.family(name)
        for process in reversed(family):  # parents first, so that nobody starts another child meanwhile
            process.send_signal(signal.SIGSTOP)
        return family

    def start(self, name: str, like: str | None = None, **environment: str) -> None:
        """Start one more process of a kind and wait until it is ready."""
        self.restart(name, like, **environment)
        self.supervisor.wait_ready(name, 150)

    def restart(self, name: str, like: str | None = None, **environment: str) -> None:
        """Start a process of a kind; return at once."""
        command = self.commands[like or name]
        argv = tuple(part.replace(f"{like}@", f"{name}@") if like else part for part in command.argv)
        self.supervisor.start(Command(name, argv, {**command.env, **environment}, ready=command.ready))

    def signal(self, name: str, number: int) -> None:
        os.kill(self.pid(name), number)

    def said(self, text: str) -> bool:
        return any(text in line for line in self.log)


@contextmanager
def running(
    workspace: Path,
    database_url: str,
    redis_url: str,
    state_dir: Path,
    *,
    beat: bool = True,
    restarts: int = 0,
    without: Collection[str] = (),
    own: Mapping[str, Mapping[str, str]] | None = None,
    queues: Mapping[str, str] | None = None,
    **environment: str,
):
    """Run the stack's commands, ready on entry, stopped on exit.

    Args:
        workspace: The workspace file.
        database_url: The migrated database.
        redis_url: The Valkey server.
        state_dir: Where the processes keep state.
        beat: Whether beat runs.
        restarts: How often a process that ended is started again.
        without: Names of commands that are not started; `Stack.start` may start them later.
        own: Further environment variables of single commands, by name.
        queues: What single workers consume in place of their own queues, by name.
        environment: Further environment variables of all.
    """
    settings = Settings.load(
        workspace=workspace, database_url=database_url, redis_url=redis_url, state_dir=state_dir
    )
    kept = {name: os.environ[name] for name in ("TEST_MODEL_KEY", "LEDGER") if name in os.environ}
    extra = {**kept, "PYTHONPATH": str(Path(__file__).parents[2]), **FAST, **environment}
    log: list[str] = []

    def sink(name: str, line: str) -> None:
        log.append(f"{name}: {line}")

    commands = {command.name: command for command in stack_commands(settings, beat=beat, extra=extra)}
    for name, consumed in (queues or {}).items():
        argv = list(commands[name].argv)
        argv[argv.index("-Q") + 1] = consumed
        commands[name] = replace(commands[name], argv=tuple(argv))
    first = [command for name, command in commands.items() if name not in without]
    with Supervisor(sink, max_restarts=restarts, stop_timeout=5) as supervisor:
        for command in first:
            supervisor.start(
                replace(command, env={**(command.env or {}), **(own or {}).get(command.name, {})})
            )
        for command in first:
            supervisor.wait_ready(command.name, 150)
        try:
            yield Stack(supervisor, commands, log)
        except BaseException:
            print("\n".join(log[-60:]), file=sys.stderr)
            raise


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until a condition of the outside world holds, or fail."""
    deadline = time.monotonic() + seconds
    tick = threading.Event()
    while not condition():
        assert time.monotonic() < deadline, "what the test waits for did not come about"
        tick.wait(0.02)
