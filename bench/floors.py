"""What raw Celery needs for the same work: the floors against which the product's figures are held.

``relay``
    One task per step that does nothing but publish the next; the queues alternate as those of turns and
    tool calls do.
``chord``
    A native chord of tasks that do nothing.
``relay_pg``, ``chord_pg``
    The same with two bare PostgreSQL commits per step, one row each: the least that "no evidence, no
    execution" allows.
"""

from __future__ import annotations

import os
import threading
from functools import cache
from typing import Any

import psycopg
import redis
from celery import Celery, chord
from celery.backends.redis import RedisBackend

TABLE = "CREATE TABLE IF NOT EXISTS bench_commit (id bigserial PRIMARY KEY, run text NOT NULL)"
_COMMIT = "INSERT INTO bench_commit (run) VALUES (%s)"
_QUEUES = ("tools", "turns")
_local = threading.local()


def done_key(run: str) -> str:
    """The Redis list to which each floor of a run that came to its end adds an entry."""
    return f"bench:done:{run}"


def add_floors(app: Celery) -> None:
    """Add the floors' tasks to an application."""

    def relay(self: Any, *, run: str, left: int, pg: bool) -> None:
        if pg:
            _commit_twice(run)
        if left > 1:
            message = {"run": run, "left": left - 1, "pg": pg}
            self.apply_async(kwargs=message, queue=_QUEUES[left % 2], retry=False)
        else:
            _tell(app, run)

    def fan_out(*, run: str, width: int, pg: bool) -> None:
        if pg:
            _commit_twice(run)
        header = [app.tasks["bench.leaf"].s(run=run, pg=pg).set(queue="turns") for _ in range(width)]
        chord(header, app=app)(app.tasks["bench.join"].s(run=run, pg=pg).set(queue="turns"))

    def leaf(*, run: str, pg: bool) -> None:
        if pg:
            _commit_twice(run)

    def join(_results: Any, *, run: str, pg: bool) -> None:
        if pg:
            _commit_twice(run)
        _tell(app, run)

    app.task(name="bench.relay", bind=True, ignore_result=True)(relay)
    app.task(name="bench.fan_out", ignore_result=True)(fan_out)
    # A native chord is counted as Celery's own backend counts it, which also hands the results to its body.
    native = RedisBackend(app=app, url=app.conf.broker_url)
    app.task(name="bench.leaf", ignore_result=True, backend=native)(leaf)
    app.task(name="bench.join", ignore_result=True)(join)


def _commit_twice(run: str) -> None:
    connection = _connection()
    connection.execute(_COMMIT, (run,))
    connection.execute(_COMMIT, (run,))


def _connection() -> psycopg.Connection[Any]:
    """This thread's connection; without a transaction block each statement is one commit."""
    if getattr(_local, "pid", None) != os.getpid():
        _local.connection = psycopg.connect(os.environ["BENCH_POSTGRES"], autocommit=True)
        _local.pid = os.getpid()
    connection: psycopg.Connection[Any] = _local.connection
    return connection


def _tell(app: Celery, run: str) -> None:
    _redis(app.conf.broker_url, os.getpid()).rpush(done_key(run), 1)


@cache
def _redis(url: str, _pid: int) -> redis.Redis:
    return redis.Redis.from_url(url)
