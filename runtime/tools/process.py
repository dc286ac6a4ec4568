"""Runs tools in a long-lived process of their own, beside the worker.

So the worker can heartbeat, bound the time and survive a tool that prints, forks, holds the interpreter's
lock, ends the process, crashes it or never returns. One process serves one call at a time; the
pool in `runtime.tools.pool` gives each thread one.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from runtime.core.model import Json, ToolOutput
from runtime.errors import AgentRuntimeError, ConfigurationError, InvalidInput
from runtime.tools.reconcile import Reconciliation
from runtime.tools.spawn import await_end, has_ended, kill_group, spawn, tool_environment
from runtime.tools.wire import FrameError, Frames, FrameTooLarge, encode

_log = logging.getLogger(__name__)

START_SECONDS = 60.0
"""How long a tool process may take to import its modules."""

_TICK = 0.1
"""Seconds between looks at whether the process lives and the call is still wanted."""

OnProgress = Callable[[Json], None]


class ToolCrashed(AgentRuntimeError):
    """The tool process ended in mid-call: the call's outcome is unknown."""

    code = "TOOL_CRASHED"


class ToolTimedOut(AgentRuntimeError):
    """The call took longer than it may; its process was killed."""

    code = "TOOL_TIMED_OUT"


class ToolCancelled(AgentRuntimeError):
    """The call was not wanted any more; its process was killed."""

    code = "TOOL_CANCELLED"


@dataclass(frozen=True, kw_only=True)
class ToolSetup:
    """What a tool process is started with.

    Attributes:
        modules: Names of tool modules, as in the workspace file.
        base_dir: Directory of the workspace file.
        environ: Environment of the process, before `tool_environment`.
        secret_variables: Names of variables that no tool may see.
        digests: Digest of each tool as the worker knows it; another one in the process is refused.
    """

    modules: Sequence[str]
    base_dir: Path
    environ: Mapping[str, str] = field(repr=False)
    secret_variables: frozenset[str] = frozenset()
    digests: Mapping[str, str] = field(default_factory=dict, repr=False)


class ToolProcess:
    """A process that runs one call at a time; it is started when needed, and again after it was killed."""

    def __init__(self, setup: ToolSetup) -> None:
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._frames: Frames | None = None
        self._owner = os.getpid()
        self._calls = 0

    @property
    def pid(self) -> int | None:
        """Process id, while there is a process."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Start the process, unless it runs.

        Raises:
            ConfigurationError: If its tools cannot be loaded, or are not those that the worker loaded.
        """
        self._forget_before_fork()
        if self._process is not None and not has_ended(self._process):
            return
        self._kill()
        self._spawn()
        try:
            hello = self._handshake()
            if "ready" not in hello:
                raise ConfigurationError(str(hello.get("refused", "the tool process gave no answer")))
            self._require_same_tools(hello["ready"])
        except BaseException:
            self._kill()
            raise

    def run(
        self,
        name: str,
        input_json: Json,
        ctx_json: Mapping[str, Json],
        *,
        deadline_s: float,
        on_progress: OnProgress | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> ToolOutput:
        """Run one call.

        Args:
            name: The tool.
            input_json: Its canonical input.
            ctx_json: `ToolContext.to_json`.
            deadline_s: Seconds that the call may take, the start of the process not counted.
            on_progress: Gets what the tool reports, in order, in this thread.
            cancelled: Asked about ten times a second whether the call is no longer wanted.

        Raises:
            ConfigurationError: The process cannot be started; the tool did not run.
            InvalidInput: The input cannot be sent; the tool did not run.
            ToolCrashed: The process ended in mid-call.
            ToolTimedOut: The call took too long.
            ToolCancelled: ``cancelled`` said so.
        """
        request = {"name": name, "input": input_json, "context": dict(ctx_json), "seconds": deadline_s}
        answer = self._call(request, deadline_s, on_progress, cancelled)
        try:
            return ToolOutput.model_validate(answer.get("output"))
        except ValidationError as error:
            self._kill()
            raise ToolCrashed(f"the tool process of {name!r} answered with what is no output") from error

    def reconcile(self, name: str, idempotency_key: str, *, deadline_s: float) -> Reconciliation:
        """Ask a tool what became of a call in doubt; whatever goes wrong with it is unknown.

        Raises:
            ConfigurationError: The process cannot be started.
        """
        try:
            answer = self._call({"name": name, "reconcile": idempotency_key}, deadline_s, None, None)
        except (ToolCrashed, ToolTimedOut) as error:
            _log.error("reconcile of %s: %s", name, error)
            return Reconciliation.unknown()
        return Reconciliation.from_json(answer.get("reconciliation"))

    def close(self) -> None:
        """End the process and all that it started."""
        self._forget_before_fork()
        self._kill()

    # --- one call ---------------------------------------------------------------------------------

    def _call(
        self,
        request: dict[str, Any],
        deadline_s: float,
        on_progress: OnProgress | None,
        cancelled: Callable[[], bool] | None,
    ) -> dict[str, Any]:
        self._calls += 1
        call = self._calls
        try:
            frame = encode({**request, "id": call})
        except (ValueError, RecursionError, FrameTooLarge) as error:
            raise InvalidInput(
                f"the input of {request['name']!r} cannot be sent to its process: {error}"
            ) from error
        self.start()
        deadline = time.monotonic() + deadline_s
        try:
            self._send(frame, request["name"], deadline, deadline_s)
            while True:
                message = self._next(request["name"], deadline, deadline_s, cancelled)
                if message.get("id") != call:
                    continue  # progress of an earlier call, from a thread that it left behind
                if "progress" not in message:
                    return message
                if on_progress is not None:
                    on_progress(message["progress"])
        except BaseException:
            self._kill()
            raise

    def _send(self, frame: bytes, name: str, deadline: float, deadline_s: float) -> None:
        assert self._connection is not None
        self._connection.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._connection.sendall(frame)
        except TimeoutError:
            raise _timed_out(name, deadline_s) from None
        except OSError:
            raise self._crashed(name) from None

    def _next(
        self, name: str, deadline: float, deadline_s: float, cancelled: Callable[[], bool] | None
    ) -> dict[str, Any]:
        """The next message of the process, which may not be the answer."""
        assert self._connection is not None
        assert self._frames is not None
        assert self._process is not None
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                raise _timed_out(name, deadline_s)
            if cancelled is not None and cancelled():
                raise ToolCancelled(f"the call of {name!r} was cancelled, and its process killed")
            ended = has_ended(self._process)
            self._connection.settimeout(min(_TICK, left))
            try:
                message = self._frames.receive()
            except TimeoutError:
                # A process that it forked may hold the socket open, so silence is not the only sign.
                if ended:
                    raise self._crashed(name) from None
                continue
            except FrameError as error:
                raise ToolCrashed(f"the tool process of {name!r} answered with nonsense: {error}") from error
            if message is None:
                raise self._crashed(name)
            return message

    def _crashed(self, name: str) -> ToolCrashed:
        assert self._process is not None
        process = self._process
        await_end(process, seconds=1)
        self._kill()
        code = process.returncode
        how = f"was killed by {_signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        return ToolCrashed(
            f"the tool process {how} in the middle of {name!r}; what it wrote is in the worker's log",
            details={"exit_code": code},
        )

    # --- the process ------------------------------------------------------------------------------

    def _spawn(self) -> None:
        environ = tool_environment(self._setup.environ, self._setup.secret_variables)
        self._process, self._connection = spawn(environ)
        self._frames = Frames(self._connection)

    def _handshake(self) -> dict[str, Any]:
        name = f"the start of {', '.join(self._setup.modules) or 'no module'}"
        deadline = time.monotonic() + START_SECONDS
        setup = {"modules": list(self._setup.modules), "base_dir": str(self._setup.base_dir)}
        try:
            self._send(encode(setup), name, deadline, START_SECONDS)
            return self._next(name, deadline, START_SECONDS, None)
        except (ToolCrashed, ToolTimedOut) as error:
            raise ConfigurationError(
                f"the tool process cannot be started: {error} — mend the tool module; importing it "
                "must neither end the process nor take long"
            ) from error

    def _require_same_tools(self, loaded: Mapping[str, str]) -> None:
        # A tool that only the worker has is no difference: a call of it here is TOOL_NOT_FOUND.
        known = self._setup.digests
        differing = sorted(name for name, own in loaded.items() if known.get(name, own) != own)
        if differing:
            raise ConfigurationError(
                f"the tool process loaded another definition of {', '.join(map(repr, differing))} than the "
                "worker: a tool module changed after the worker started — restart the worker"
            )

    def _kill(self) -> None:
        """Kill the process and whatever it started in its group."""
        process, connection = self._process, self._connection
        self._process = self._connection = self._frames = None
        if connection is not None:
            connection.close()
        if process is not None:
            kill_group(process)

    def _forget_before_fork(self) -> None:
        """After a fork of the worker, the process is the parent's."""
        if self._owner != os.getpid():
            if self._connection is not None:
                self._connection.close()
            self._process = self._connection = self._frames = None
            self._owner = os.getpid()


def _timed_out(name: str, seconds: float) -> ToolTimedOut:
    return ToolTimedOut(
        f"{name!r} did not end within {seconds:g} s, and its process was killed", details={"seconds": seconds}
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
