"""What runs inside a tool process: loads the tools, then serves one call after the other.

Started by `runtime.tools.process`, never by hand. Standard output and error belong to the tools and go to
the worker's log; the conversation with the worker has a socket of its own.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from runtime.core.model import Json, ToolOutput
from runtime.errors import AgentRuntimeError, ErrorCode
from runtime.tools.context import ToolContext
from runtime.tools.reconcile import call_reconcile
from runtime.tools.registry import ToolRegistry
from runtime.tools.run import call_tool
from runtime.tools.wire import Frames, FrameTooLarge, encode

_PR_SET_PDEATHSIG = 1


def main(descriptor: int, parent: int) -> None:
    """Serve calls until the worker closes the socket.

    Args:
        descriptor: File descriptor of the socket to the worker.
        parent: The worker's process id.
    """
    faulthandler.enable()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _die_with(parent)
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    os.register_at_fork(after_in_child=connection.close)
    _Server(connection).serve()


def _die_with(parent: int) -> None:
    """See that this process ends when the worker does, also in the middle of a call."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it ended before the line above took effect
        os._exit(1)


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGKILL)


class _Server:
    """One conversation with the worker."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._frames = Frames(connection)
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self._registry = ToolRegistry()

    def serve(self) -> None:
        setup = self._frames.receive()
        if setup is None:
            return
        try:
            self._registry.load_modules(setup["modules"], Path(setup["base_dir"]))
        except AgentRuntimeError as error:
            self._send({"refused": str(error)})
            return
        self._send({"ready": {definition.name: definition.digest for definition in self._registry}})
        while (request := self._frames.receive()) is not None:
            try:
                self._send(self._answer(request))
            except FrameTooLarge as error:
                self._send(_failed(request, f"the output is too large: {error}"))
            except (ValueError, RecursionError) as error:
                self._send(_failed(request, f"the output cannot be sent: {error}"))

    def _answer(self, request: dict[str, Any]) -> dict[str, Json]:
        call = request["id"]
        definition = self._registry.get(request["name"])
        if definition is None:
            missing = ToolOutput.failed(
                ErrorCode.TOOL_NOT_FOUND, f"no tool {request['name']!r} in this process"
            )
            return {"id": call, "output": missing.model_dump(mode="json")}
        if "reconcile" in request:
            return {"id": call, "reconciliation": call_reconcile(definition, request["reconcile"]).to_json()}
        ctx = ToolContext.from_json(
            request["context"],
            deadline=time.monotonic() + request["seconds"],
            on_progress=lambda data: self._send({"id": call, "progress": data}),
        )
        output = call_tool(definition, request["input"], ctx)
        # `model_dump` would refuse the lone surrogates that JSON may hold.
        error = output.error and vars(output.error)
        return {
            "id": call,
            "output": {
                "success": output.success,
                "data": output.data,
                "error": error,
                "metadata": output.metadata,
            },
        }

    def _send(self, message: dict[str, Json]) -> None:
        if os.getpid() != self._owner:
            # A tool forked, and the copy of it has come to its end: the call is not the copy's to answer.
            os._exit(0)
        frame = encode(message)
        with self._lock:
            self._connection.sendall(frame)


def _failed(request: dict[str, Any], why: str) -> dict[str, Json]:
    output = ToolOutput.failed(ErrorCode.INVALID_OUTPUT, f"{request['name']}: {why}")
    return {"id": request["id"], "output": output.model_dump(mode="json")}
