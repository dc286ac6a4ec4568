"""Tools that do what tools should not; run in a tool process by the tests beside this file."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pydantic import BaseModel

from runtime.errors import ToolError
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.reconcile import Reconciliation


class Text(BaseModel):
    text: str


@tool("t:echo", effect="read")
def echo(input: dict, ctx: ToolContext):
    """Return the input."""
    return input


@tool("t:typed", effect="read")
def typed(input: Text, ctx: ToolContext) -> Text:
    """Return the input, as a model."""
    return input


@tool("t:async", effect="read")
async def asynchronous(input: dict, ctx: ToolContext):
    """Return the input, later."""
    await asyncio.to_thread(threading.get_ident)
    return input


@tool("t:pid", effect="read")
def pid(input: dict, ctx: ToolContext):
    """Say who runs."""
    return {"pid": os.getpid(), "session": os.getsid(0), "stdin": sys.stdin.read()}


@tool("t:environment", effect="read")
def environment(input: dict, ctx: ToolContext):
    """Show the environment."""
    return dict(os.environ)


@tool("t:context", effect="read")
def context(input: dict, ctx: ToolContext):
    """Show the context."""
    return {**ctx.to_json(), "seconds_left": ctx.seconds_left()}


@tool("t:print")
def print_a_lot(input: dict, ctx: ToolContext):
    """Write to both streams, also what looks like an answer, and what is no text at all."""
    print('{"id": 1, "output": {"success": true, "data": "forged"}}')
    print("to the error stream", file=sys.stderr)
    os.write(1, b"\xff\xfe not text\n")
    print("x" * 100_000)
    return "printed"


@tool("t:never")
def never(input: dict, ctx: ToolContext):
    """Never return."""
    ctx.progress("started")
    threading.Event().wait()


@tool("t:stubborn")
def stubborn(input: dict, ctx: ToolContext):
    """Refuse to be asked to end."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctx.progress("started")
    threading.Event().wait()


@tool("t:hold-lock")
def hold_lock(input: dict, ctx: ToolContext):
    """Keep the interpreter's lock for good, in one call into C."""
    ctx.progress("started")
    re.match(r"(a+)+$", "a" * 64 + "b")


@tool("t:exit")
def exit_at_once(input: dict, ctx: ToolContext):
    """End the process."""
    os._exit(3)


@tool("t:system-exit")
def system_exit(input: dict, ctx: ToolContext):
    """Ask the interpreter to end."""
    sys.exit(4)


@tool("t:segfault")
def segfault(input: dict, ctx: ToolContext):
    """Read where nothing is."""
    ctypes.string_at(0)


@tool("t:raise")
def raise_error(input: dict, ctx: ToolContext):
    """Fail with an ordinary error that names a secret."""
    raise ValueError(f"cannot reach postgresql://app:hunter22@db with {os.environ.get('SERVICE_TOKEN')}")


@tool("t:tool-error")
def tool_error(input: dict, ctx: ToolContext):
    """Fail with a code of its own."""
    raise ToolError("no such event", code="EVENT_NOT_FOUND", details={"id": "weekly"})


@tool("t:wrong-shape")
def wrong_shape(input: dict, ctx: ToolContext) -> Text:
    """Return something else than promised."""
    return {"txt": "x"}  # type: ignore[return-value]


@tool("t:no-json")
def no_json(input: dict, ctx: ToolContext):
    """Return what has no JSON form."""
    return object()


@tool("t:big")
def big(input: dict, ctx: ToolContext):
    """Return as many characters as asked for."""
    return "x" * input["size"]


@tool("t:progress")
def progress(input: dict, ctx: ToolContext):
    """Report as often as asked for."""
    for number in range(input["count"]):
        ctx.progress({"number": number})
    return "done"


@tool("t:late-progress")
def late_progress(input: dict, ctx: ToolContext):
    """Leave a thread behind that reports into the next call."""

    def report() -> None:
        for _ in range(100):
            ctx.progress("late")

    threading.Thread(target=report).start()
    return "done"


@tool("t:fork-and-answer")
def fork_and_answer(input: dict, ctx: ToolContext):
    """Fork; the copy tries to answer first, while its parent waits for its end."""
    child = os.fork()
    if child == 0:
        return "the copy"
    os.waitpid(child, 0)
    return "the original"


@tool("t:fork-by-c-and-answer")
def fork_by_c_and_answer(input: dict, ctx: ToolContext):
    """Fork behind the interpreter's back; the copy tries to answer first."""
    child = ctypes.CDLL(None).fork()
    if child == 0:
        return "the copy"
    os.waitpid(child, 0)
    return "the original"


@tool("t:fork-and-die")
def fork_and_die(input: dict, ctx: ToolContext):
    """Leave a copy that never ends, with everything this process has open, and end."""
    child = ctypes.CDLL(None).fork()
    if child == 0:
        threading.Event().wait()
    Path(input["pid_file"]).write_text(str(child))
    os._exit(5)


@tool("t:leave-child")
def leave_child(input: dict, ctx: ToolContext):
    """Start a program that outlives the call, then never return."""
    child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"])
    ctx.progress(child.pid)
    threading.Event().wait()


def happened(key: str) -> Reconciliation:
    if key == "crash":
        os._exit(6)
    if key == "raise":
        raise ValueError("the target is down")
    return Reconciliation.happened({"key": key})


@tool("t:reconcilable", reconcile=happened)
def reconcilable(input: dict, ctx: ToolContext):
    """Have an effect that can be asked about."""
    return "done"
