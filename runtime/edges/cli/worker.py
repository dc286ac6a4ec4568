"""``agent-runtime worker`` and ``agent-runtime beat``: the processes of a deployment."""

from __future__ import annotations

import os
import sys
from typing import Annotated, NoReturn

import typer

DEFAULT_CONCURRENCY = 8


def worker(
    queues: Annotated[str | None, typer.Option("--queues", "-Q", help="Queues, by commas.")] = None,
    pool: Annotated[str | None, typer.Option("--pool", "-P", help="threads, prefork or gevent.")] = None,
    concurrency: Annotated[int | None, typer.Option("--concurrency", "-c", min=1)] = None,
    hostname: Annotated[str | None, typer.Option("--hostname", "-n", help="Node name.")] = None,
) -> None:
    """Run one worker as the options say; without options, turns on threads and tools on prefork."""
    from runtime.edges.shadowing import refuse_shadowed_modules

    refuse_shadowed_modules()
    if queues is None and pool is None and concurrency is None and hostname is None:
        _both()
    else:
        options = {"-Q": queues, "-P": pool, "-c": concurrency, "-n": hostname}
        given = [str(word) for pair in options.items() if pair[1] is not None for word in pair]
        _become("worker", *given, "--loglevel", "INFO")


def beat() -> None:
    """Send the sweep twice a second; several beats are harmless."""
    from runtime.edges.shadowing import refuse_shadowed_modules

    refuse_shadowed_modules()
    _become("beat", "--loglevel", "INFO")


def _become(*arguments: str) -> NoReturn:
    """Replace this process, so that signals and exit codes are Celery's own."""
    argv = [sys.executable, "-m", "celery", "-A", "tasks", *arguments]
    os.execv(sys.executable, argv)  # noqa: S606 - no shell is meant


def _both() -> None:
    from runtime.edges.cli.console import stoppable
    from runtime.edges.embedded import running_stack, stack_commands
    from runtime.edges.supervisor import ChildFailed
    from runtime.settings import Settings

    def show(name: str, line: str) -> None:
        sys.stdout.write(f"{name} | {line}\n")
        sys.stdout.flush()

    commands = stack_commands(Settings.load(), beat=False)
    try:
        with stoppable(), running_stack(commands, show) as supervisor:
            failure = supervisor.failure()
    except KeyboardInterrupt:
        return
    if failure is not None:
        raise ChildFailed(str(failure))
