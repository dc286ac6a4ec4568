"""Runs the command line as its users do: as a process, in a directory of its own."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import pytest

CLI = (sys.executable, "-m", "runtime.edges.cli")
ROOT = Path(__file__).parents[3]


def environment(**variables):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_RUNTIME_")}
    return {**kept, "PYTHONPATH": str(ROOT), **variables}


@pytest.fixture(scope="session")
def agent_runtime() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs one command to its end, without a terminal."""

    def run(*arguments, cwd, **variables):
        return subprocess.run(
            [*CLI, *arguments],
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


@pytest.fixture(scope="session")
def in_foreground():
    """Runs a command until the block ends, entering it once the command has said ``until``."""

    @contextmanager
    def run(*arguments, cwd, until, **variables):
        with subprocess.Popen(
            [*CLI, *arguments],
            cwd=cwd,
            env=environment(**variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            try:
                said = []
                for line in process.stdout:
                    said.append(line)
                    if until in line:
                        break
                assert until in said[-1], said
                yield process
            finally:
                process.kill()

    return run
