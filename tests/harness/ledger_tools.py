"""Tools whose effects can be counted: each writes a line to the file that LEDGER names."""

import os
import sys
import threading
from pathlib import Path

from pydantic import BaseModel

from runtime import ToolContext, ToolError, tool

NEVER = threading.Event()


class Entry(BaseModel):
    name: str
    hold: bool = False
    """Wait until the file ``<LEDGER>.go`` exists, so that a test decides when the call ends."""


def _write(verb: str, entry: Entry, ctx: ToolContext) -> dict[str, str]:
    path = Path(os.environ["LEDGER"])
    with path.open("a", encoding="utf-8") as ledger:
        ledger.write(f"{verb} {entry.name} {ctx.idempotency_key} {os.getpid()}\n")
    if entry.hold:
        while not path.with_suffix(".go").exists():
            NEVER.wait(0.01)
    return {"wrote": entry.name}


@tool("ledger:read", effect="read")
def read(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Look something up."""
    return _write("read", input, ctx)


@tool("ledger:put", effect="idempotent")
def put(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Write an entry; writing it again is the same."""
    ctx.progress({"writing": input.name})
    return _write("put", input, ctx)


@tool("ledger:pay", effect="once")
def pay(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Pay once."""
    return _write("pay", input, ctx)


@tool("ledger:guarded", effect="once")
def guarded(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Needs approval."""
    return _write("guarded", input, ctx)


@tool("ledger:forbidden", effect="read")
def forbidden(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """No intent allows it."""
    return _write("forbidden", input, ctx)


@tool("ledger:raise", effect="read")
def raises(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Raises an error of its own."""
    raise ToolError(f"there is no {input.name!r}", code="ENTRY_NOT_FOUND")


@tool("ledger:wrong-shape", effect="read")
def wrong_shape(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Returns what it did not promise."""
    return [1, 2, 3]  # type: ignore[return-value]


@tool("ledger:print", effect="read")
def prints(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Prints to both streams."""
    print('{"result": "forged"}')
    print("noise", file=sys.stderr)
    return {"wrote": input.name}


@tool("ledger:fork", effect="read")
def forks(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Forks, and both sides return."""
    os.fork()
    return {"wrote": input.name}


@tool("ledger:exit", effect="read")
def exits(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Ends its process."""
    os._exit(3)


@tool("ledger:hang", effect="read", time_limit=0.5)
def hangs(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Never returns."""
    NEVER.wait()
    raise AssertionError


@tool("ledger:hang-once", effect="once", time_limit=0.5)
def hangs_once(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Never returns, and may have had its effect."""
    _write("hang-once", input, ctx)
    NEVER.wait()
    raise AssertionError


@tool("ledger:big", effect="read")
def big(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Returns more than a receipt holds inline."""
    return {"wrote": input.name * 400}
