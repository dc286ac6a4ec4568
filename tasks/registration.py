"""Adds the runtime's tasks, queues and beat entry to a Celery application."""

from __future__ import annotations

from celery import Celery

from beat_schedule import beat_schedule
from runtime.live.celery_settings import (
    ADVANCE_TASK,
    CALL_TASK,
    QUEUES,
    SWEEP_TASK,
    TURN_TASK,
)
from runtime.providers.client import ProviderClient
from tasks import coordination, maintenance, tools, turns
from tasks.shadowing import refuse_shadowed_modules
from tasks.worker import connect_signals


def register(app: Celery, queue_prefix: str = "") -> None:
    """Add everything to an application of yours; its own tasks, queues and routes stay as they are.

    Args:
        app: Your application. Its broker must be Redis or Valkey, its messages JSON.
        queue_prefix: Put before the name of each queue of ours, to share a broker.

    Raises:
        ConfigurationError: If another module named ``tasks`` or ``runtime`` shadows ours.
    """
    from kombu.entity import Queue

    add_tasks(app, queue_prefix)
    mine = [Queue(queue_prefix + name) for name in QUEUES]
    theirs = list(app.conf.task_queues or [Queue(app.conf.task_default_queue)])
    known = {queue.name for queue in theirs}
    app.conf.task_queues = theirs + [queue for queue in mine if queue.name not in known]
    routes = {
        TURN_TASK: {"queue": queue_prefix + "turns"},
        CALL_TASK: {"queue": queue_prefix + "tools"},
        ADVANCE_TASK: {"queue": queue_prefix + "coordination"},
        SWEEP_TASK: {"queue": queue_prefix + "maintenance"},
    }
    app.conf.task_routes = _joined(routes, app.conf.task_routes)
    app.conf.beat_schedule = {**(app.conf.beat_schedule or {}), **beat_schedule(queue_prefix)}


def _joined(routes: dict[str, dict[str, str]], theirs: object) -> object:
    if not theirs:
        return routes
    if isinstance(theirs, dict):
        return {**theirs, **routes}
    return [routes, *(theirs if isinstance(theirs, list | tuple) else [theirs])]


def add_tasks(app: Celery, queue_prefix: str = "", provider: ProviderClient | None = None) -> None:
    """Add the tasks alone, for an application that is made for the runtime.

    Args:
        app: The application.
        queue_prefix: Put before the name of each queue of ours.
        provider: Makes the model calls of its workers; default: over the network.
    """
    refuse_shadowed_modules()
    connect_signals(app, queue_prefix, provider)
    # Our messages say nothing but ids, nobody reads a result, and SQL knows what was lost.
    common = {"ignore_result": True, "acks_late": False, "store_errors_even_if_ignored": False}
    for name, body in (
        (TURN_TASK, turns.execute_turn),
        (CALL_TASK, tools.execute_tool_call),
        (ADVANCE_TASK, coordination.advance),
        (SWEEP_TASK, maintenance.sweep),
    ):
        app.task(name=name, bind=True, queue_prefix=queue_prefix, provider=provider, **common)(body)
