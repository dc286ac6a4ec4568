"""Starts and ends the operating system's side of a tool process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import IO

from runtime.errors import ConfigurationError
from runtime.tools.redact import redact

_log = logging.getLogger("runtime.tools.output")

_LONGEST_LINE = 8192
_BOOT = (
    "import sys; descriptor, parent, *sys.path = sys.argv[1:]; sys.argv[1:] = []; "
    "from runtime.tools.child import main; main(int(descriptor), int(parent))"
)


def _new_spawner() -> ThreadPoolExecutor:
    """A thread that starts all tool processes of this process; it begins with the first of them.

    A parent-death signal is sent when the *thread* that started the child ends (prctl(2)), so that must be
    one that lives as long as the process does.
    """
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="tool-spawner")


def _replace_spawner() -> None:
    global _spawner
    _spawner = _new_spawner()


_spawner = _new_spawner()
os.register_at_fork(after_in_child=_replace_spawner)  # threads do not survive a fork


def tool_environment(environ: Mapping[str, str], secret_variables: frozenset[str]) -> dict[str, str]:
    """What a tool process may see of an environment: no server address of ours, no model key."""
    return {
        name: value
        for name, value in environ.items()
        if name not in secret_variables
        and name != "AGENT_RUNTIME_API_KEY"
        and not (name.startswith("AGENT_RUNTIME_") and name.endswith("_URL"))
    }


def spawn(environ: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a process that runs `runtime.tools.child`, and return it with our end of its socket.

    Raises:
        ConfigurationError: If the system refuses another process.
    """
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-u", "-P", "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), *sys.path]

    def popen() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[theirs.fileno()],
            env=environ,
            start_new_session=True,
        )

    try:
        process = _spawner.submit(popen).result()
    except OSError as error:
        ours.close()
        raise ConfigurationError(
            f"no tool process can be started ({error}) — raise this worker's limits"
        ) from error
    finally:
        theirs.close()
    assert process.stdout is not None
    threading.Thread(target=_log_lines, args=(process.stdout, process.pid), daemon=True).start()
    return process, ours


def has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Whether a process ended. It is not reaped, so that its number stays its own until `kill_group`."""
    if process.returncode is not None:
        return True
    try:
        return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def await_end(process: subprocess.Popen[bytes], *, seconds: float) -> None:
    """Give a process that closed its socket the time to end by itself, so that its exit code is its own."""
    deadline = time.monotonic() + seconds
    while not has_ended(process) and time.monotonic() < deadline:
        time.sleep(0.01)


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and all that it started in its group, and reap it."""
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError) as error:
            _log.debug("tool process %d: %s", process.pid, error)
        process.wait()


def _log_lines(stream: IO[bytes], pid: int) -> None:
    """Write what tools print to the log, until nobody holds the other end."""
    with stream:
        while line := stream.readline(_LONGEST_LINE):
            text = line.decode("utf-8", errors="backslashreplace").rstrip()
            if text:
                _log.info("[%d] %s", pid, redact(text))
