"""What a worker process holds: one open runtime, made after the fork, and the way out of the worker."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from celery import Celery, signals
from celery.worker import state
from celery.worker.control import control_command

from runtime.errors import AgentRuntimeError, SpecTampered, StoreUnavailable
from runtime.live.hints import Carrier

if TYPE_CHECKING:  # beat and Flower load the tasks as well, and have no use for the engine
    from runtime.agent_runtime import AgentRuntime
    from runtime.providers.client import ProviderClient

logger = logging.getLogger(__name__)

EXIT_TAMPERED = 78
"""Exit code (EX_CONFIG of sysexits.h) of a worker whose workspace file changed under it."""

_STOP_COMMAND = "agent_runtime_stop"

_lock = threading.Lock()
_at_start: list[str] = []
"""Queues that this worker was started with; a pool's children inherit it."""
_opened: dict[int, AgentRuntime] = {}


def open_runtime(app: Celery, queue_prefix: str, provider: ProviderClient | None = None) -> AgentRuntime:
    """Open the runtime as a worker of an application needs it."""
    from runtime.agent_runtime import AgentRuntime

    return AgentRuntime.open(
        tool_processes=True, celery_app=app, queue_prefix=queue_prefix, provider=provider
    )


def runtime_of(task: Any) -> AgentRuntime:
    """The runtime of this process, opened on first use after the fork."""
    with _lock:
        found = _opened.get(os.getpid())
        if found is None:
            _opened.clear()  # what a parent opened belongs to the parent
            found = _opened[os.getpid()] = open_runtime(task.app, task.queue_prefix, task.provider)
        return found


def consumed_queues(task: Any) -> tuple[str, ...]:
    """Names, without our prefix, of the queues that this worker consumes by its own configuration.

    What a message claims about its queue is not asked, and what a control message adds later does not count:
    the names are those of the worker's start.
    """
    prefix = task.queue_prefix
    return tuple(name.removeprefix(prefix) for name in _at_start if name.startswith(prefix))


def carried(task: Any) -> frozenset[Carrier]:
    """The hints that this very delivery brings along: Celery sends them when the task has returned."""
    request = task.request
    found = {Carrier.CHORD: request.chord, Carrier.CHAIN: request.chain}
    return frozenset(carrier for carrier, brought in found.items() if brought)


@contextmanager
def never_raising(task: Any, what: str) -> Iterator[None]:
    """Keep a task from raising: whatever goes wrong is logged, and SQL still knows what is to be done."""
    try:
        yield
    except SpecTampered as error:
        logger.error("%s; this worker drains and exits with %d", error, EXIT_TAMPERED)
        _stop_worker(task, EXIT_TAMPERED)
    except StoreUnavailable as error:
        logger.error("%s: %s", what, error)
    except AgentRuntimeError as error:
        logger.error("%s: %s: %s", what, error.code, error)
    except Exception:
        logger.exception("%s failed; the step is tried again when its lease has run out", what)


def unserved_queues(opened: AgentRuntime, consumed: Iterable[str], prefix: str) -> Iterator[str]:
    """What to say of tools that name a queue of their own which a worker for tools does not consume.

    A worker that consumes no tools by its own choice is not asked.
    """
    served = set(consumed)
    if prefix + "tools" not in served:
        return
    own: dict[str, list[str]] = {}
    for tool in opened.parts.host.registry:
        if prefix + tool.queue not in served:
            own.setdefault(prefix + tool.queue, []).append(tool.name)
    for queue, names in own.items():
        yield (
            f"calls of {', '.join(names)} run on queue {queue!r}, which this worker does not consume; give "
            f"it or another one '-Q {queue}' ('agent-runtime doctor' says whether one does)"
        )


# --- the way out ----------------------------------------------------------------------------------


def _stop_worker(task: Any, code: int) -> None:
    """Ask the worker that runs a task to finish what it runs and exit; also from a pool's child."""
    if task.request.hostname and task.app.control is not None:
        task.app.control.broadcast(
            _STOP_COMMAND, arguments={"code": code}, destination=[task.request.hostname]
        )


@control_command(name=_STOP_COMMAND, args=[("code", int)], signature="CODE")
def _stop(_state: Any, code: int, **_: Any) -> dict[str, str]:
    """Runs in the worker's main process, whatever its pool."""
    state.should_stop = code
    return {"ok": f"stopping with {code}"}


# --- the way in -----------------------------------------------------------------------------------


def connect_signals(
    app: Celery,
    queue_prefix: str,
    provider: ProviderClient | None = None,
    foreign_queues: frozenset[str] = frozenset(),
) -> None:
    """Check everything when a worker starts, and open the runtime in each process that runs steps.

    The parent of a prefork pool closes what it opened before it forks. A worker that consumes none but
    foreign queues has nothing to do with the runtime.
    """

    def concerned() -> bool:
        names = app.amqp.queues.consume_from
        return any(name.startswith(queue_prefix) and name not in foreign_queues for name in names)

    def at_start(sender: Any = None, **_: Any) -> None:
        if sender is None or sender.app is not app or not concerned():
            return
        _at_start[:] = app.amqp.queues.consume_from
        try:
            opened = open_runtime(app, queue_prefix, provider)
        except AgentRuntimeError as error:
            sys.stderr.write(f"error: {error.code}: {error}\n")
            raise SystemExit(1) from None
        if not opened.workspace_active():
            logger.error(
                "workspace file %s is not active: this worker runs nothing until it is; "
                "run 'agent-runtime config activate'",
                opened.workspace.path,
            )
        if {queue_prefix + "turns", queue_prefix + "tools"} <= set(app.amqp.queues.consume_from):
            logger.warning(
                "this worker runs turns and tools in one pool, where long calls of the one hold up the "
                "other; 'agent-runtime worker' runs them apart"
            )
        for problem in unserved_queues(opened, app.amqp.queues.consume_from, queue_prefix):
            logger.warning("%s", problem)
        if "prefork" in sender.pool_cls.__module__:
            opened.close()
        else:
            _opened[os.getpid()] = opened
        # What is loaded by now stays: no collection looks at it again, and children that are forked share it.
        gc.freeze()

    def in_child(**_: Any) -> None:
        if not concerned():
            return
        try:
            opened = open_runtime(app, queue_prefix, provider)
        except AgentRuntimeError as error:
            logger.error("%s: %s", error.code, error)
            return
        _opened.clear()
        _opened[os.getpid()] = opened

    uid = f"agent-runtime-{id(app)}"
    signals.worker_init.connect(at_start, weak=False, dispatch_uid=uid)
    signals.worker_process_init.connect(in_child, weak=False, dispatch_uid=uid)


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def close_runtime(**_: Any) -> None:
    """Close what this process opened."""
    opened = _opened.pop(os.getpid(), None)
    if opened is not None:
        opened.close()
