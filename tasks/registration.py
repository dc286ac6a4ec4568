"""Adds the runtime's tasks, queues and beat entry to a Celery application."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.entity import Exchange, Queue

from beat_schedule import beat_schedule
from runtime.errors import ConfigurationError
from runtime.live.application import check_application
from runtime.live.celery_settings import (
    ADVANCE_TASK,
    CALL_TASK,
    QUEUES,
    SWEEP_TASK,
    TURN_TASK,
)
from tasks import coordination, maintenance, tools, turns
from tasks.worker import connect_signals

if TYPE_CHECKING:
    from runtime.providers.client import ProviderClient


def register(app: Celery, queue_prefix: str = "") -> None:
    """Add everything to an application of yours; its own tasks, queues, routes and settings stay as they are.

    Configure the application first: what is set on it afterwards replaces what is added here.

    Args:
        app: Your application. Its broker must be Redis or Valkey, and its workers must accept JSON.
        queue_prefix: Put before the name of each queue of ours, to share a broker. Give `AgentRuntime.open`
            the same one.

    Raises:
        ConfigurationError: If the broker is not Redis, JSON is not accepted, or one of your queues has the
            name of one of ours.
    """
    check_application(app)
    theirs = _their_queues(app)
    queues = _our_queues(app, queue_prefix, theirs)
    add_tasks(app, queue_prefix, foreign_queues=frozenset(theirs))
    app.conf.task_queues = [*theirs.values(), *queues]
    routes = {
        TURN_TASK: {"queue": queue_prefix + "turns"},
        CALL_TASK: {"queue": queue_prefix + "tools"},
        ADVANCE_TASK: {"queue": queue_prefix + "coordination"},
        SWEEP_TASK: {"queue": queue_prefix + "maintenance"},
    }
    app.conf.task_routes = _joined(routes, app.conf.task_routes)
    app.conf.beat_schedule = {**(app.conf.beat_schedule or {}), **beat_schedule(queue_prefix)}
    app.amqp.__dict__.pop("queues", None)  # Celery keeps what it once made of the setting


def _their_queues(app: Celery) -> dict[str, Any]:
    """The application's queues by name, as Celery makes them of its settings, the default one included."""
    conf = app.conf
    given = conf.task_queues
    if isinstance(given, Mapping):
        return {
            name: each if isinstance(each, Queue) else Queue.from_dict(name, **each)
            for name, each in given.items()
        }
    if given:
        return {queue.name: queue for queue in given}
    name = conf.task_default_queue
    exchange = Exchange(conf.task_default_exchange or name, conf.task_default_exchange_type)
    return {name: Queue(name, exchange, routing_key=conf.task_default_routing_key or name)}


def _our_queues(app: Celery, queue_prefix: str, theirs: Mapping[str, Any]) -> list[Any]:
    names = [queue_prefix + name for name in QUEUES]
    if taken := sorted(set(names).intersection(theirs)):
        raise ConfigurationError(
            f"Celery application {app.main!r} has queues of the runtime's names already "
            f"({', '.join(taken)}), and workers of the one would take messages of the other: call register() "
            "once, or give it and AgentRuntime.open() a queue_prefix of their own"
        )
    # Each has its own exchange: what the application sends to its default exchange is not for ours.
    return [Queue(name, Exchange(name), routing_key=name) for name in names]


def _joined(routes: dict[str, dict[str, str]], theirs: object) -> object:
    if not theirs:
        return routes
    if isinstance(theirs, dict):
        return {**theirs, **routes}
    return [routes, *(theirs if isinstance(theirs, list | tuple) else [theirs])]


def add_tasks(
    app: Celery,
    queue_prefix: str = "",
    provider: ProviderClient | None = None,
    foreign_queues: frozenset[str] = frozenset(),
) -> None:
    """Add the tasks alone, for an application that is made for the runtime.

    Args:
        app: The application.
        queue_prefix: Put before the name of each queue of ours.
        provider: Makes the model calls of its workers; default: over the network.
        foreign_queues: Queues whose workers have nothing to do with the runtime.
    """
    connect_signals(app, queue_prefix, provider, foreign_queues)
    # Our messages say nothing but ids, nobody reads a result, and SQL knows what was lost.
    common = {
        "ignore_result": True,
        "acks_late": False,
        "store_errors_even_if_ignored": False,
        "serializer": "json",
        "shared": False,  # another application of this process may have another prefix
        "Request": "tasks.requests:QueueTellingRequest",  # by name, since only workers need it
    }
    for name, body in (
        (TURN_TASK, turns.execute_turn),
        (CALL_TASK, tools.execute_tool_call),
        (ADVANCE_TASK, coordination.advance),
        (SWEEP_TASK, maintenance.sweep),
    ):
        app.task(name=name, bind=True, queue_prefix=queue_prefix, provider=provider, **common)(body)
