"""The Celery application of the benchmarks: the product's tasks with a stub model, and the floors beside.

Floors and product run in the same worker processes, with the same settings and on the same queues. The file
that ``BENCH_TRACE`` names gets a line for each task that a worker begins, and for each one that the sweep
publishes.
"""

from __future__ import annotations

import os
import time
from typing import Any

from celery import Celery, current_task, signals

from beat_schedule import beat_schedule
from bench.floors import add_floors
from bench.stub import stub_provider
from runtime.live.celery_settings import SWEEP_TASK, celery_settings
from runtime.settings import Settings
from tasks.registration import add_tasks


def make_app(redis_url: str) -> Celery:
    """Make the application for one Valkey server."""
    made = Celery("bench", set_as_current=False)
    made.conf.update(celery_settings(redis_url))
    made.conf.beat_schedule = beat_schedule()
    add_tasks(made, provider=stub_provider())
    add_floors(made)
    return made


def _trace_tasks(path: str) -> None:
    # One small append per task, for floors and product alike; the monotonic clock is the machine's.
    file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def begun(task: Any = None, kwargs: Any = None, **_: Any) -> None:
        run = kwargs.get("session_id") or kwargs.get("run")
        os.write(file, f"{time.monotonic_ns()} {task.name} {run}\n".encode())

    def published(body: Any = None, **_: Any) -> None:
        if current_task and current_task.name == SWEEP_TASK:
            ids = body[1]
            place = f"{ids['session_id']}/{ids.get('node_id')}"
            os.write(file, f"{time.time_ns()} published {place}\n".encode())  # due times are on this clock

    signals.task_prerun.connect(begun, weak=False)
    signals.after_task_publish.connect(published, weak=False)


def _app() -> Celery:
    settings = Settings.load()
    if "BENCH_TRACE" in os.environ:
        _trace_tasks(os.environ["BENCH_TRACE"])
    return make_app(settings.redis_url or "")


app = _app()
