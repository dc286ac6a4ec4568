"""What a worker process holds: one open runtime, made after the fork, and the way out of the worker."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from celery import signals
from celery.worker import state

from runtime.agent_runtime import AgentRuntime
from runtime.errors import AgentRuntimeError, SpecTampered, StoreUnavailable

logger = logging.getLogger(__name__)

EXIT_TAMPERED = 78
"""Exit code (EX_CONFIG of sysexits.h) of a worker whose workspace file changed under it."""

_lock = threading.Lock()
_opened: dict[int, AgentRuntime] = {}


def runtime_of_process() -> AgentRuntime:
    """The runtime of this process, opened on first use after the fork."""
    with _lock:
        found = _opened.get(os.getpid())
        if found is None:
            _opened.clear()  # what a parent opened belongs to the parent
            found = _opened[os.getpid()] = AgentRuntime.open(tool_processes=True)
        return found


def consumed_queues(task: Any, queue_prefix: str) -> tuple[str, ...]:
    """Names, without our prefix, of the queues that this worker consumes by its own configuration.

    What a message claims about its queue is not asked.
    """
    names = task.app.amqp.queues.consume_from
    return tuple(name.removeprefix(queue_prefix) for name in names)


@contextmanager
def never_raising(what: str) -> Iterator[None]:
    """Keep a task from raising: whatever goes wrong is logged, and SQL still knows what is to be done."""
    try:
        yield
    except SpecTampered as error:
        logger.error("%s; this worker drains and exits with %d", error, EXIT_TAMPERED)
        stop_worker(EXIT_TAMPERED)
    except StoreUnavailable as error:
        logger.error("%s: %s", what, error)
    except AgentRuntimeError as error:
        logger.error("%s: %s: %s", what, error.code, error)
    except Exception:
        logger.exception("%s failed; the step is tried again when its lease has run out", what)


def stop_worker(code: int) -> None:
    """Ask this worker to finish what it runs and exit."""
    if state.should_stop is None:
        state.should_stop = code


@signals.worker_process_shutdown.connect
@signals.worker_shutdown.connect
def close_runtime(**_: Any) -> None:
    """Close what this process opened."""
    opened = _opened.pop(os.getpid(), None)
    if opened is not None:
        opened.close()


def warm_up(**_: Any) -> None:
    """Open the runtime as soon as the worker is ready, so that a wrong setting is seen at the start."""
    with never_raising("opening the runtime"):
        runtime_of_process()


def connect_signals() -> None:
    """Open the runtime in each process that will run steps."""
    signals.worker_process_init.connect(warm_up, weak=False, dispatch_uid="agent-runtime-process")
