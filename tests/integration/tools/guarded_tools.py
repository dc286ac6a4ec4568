"""Tools that use the files and the network of their call; the test beside runs them in a tool process."""

from __future__ import annotations

from runtime.tools.context import ToolContext
from runtime.tools.declare import tool


@tool("g:copy", effect="idempotent")
def copy(input: dict, ctx: ToolContext):
    """Copy a text file."""
    with ctx.open(input["from"]) as source, ctx.open(input["to"], "w") as target:
        return target.write(source.read())


@tool("g:fetch", effect="read")
def fetch(input: dict, ctx: ToolContext):
    """Fetch a page, wherever it leads."""
    return ctx.http.get(input["url"], follow_redirects=True).text
