"""The tools of the measured sessions: governed as any other, and they do nothing."""

from __future__ import annotations

from pydantic import BaseModel

from runtime import ToolContext, tool


class Nothing(BaseModel):
    """The input: how many calls came before."""

    n: int


@tool("bench:noop")
def noop(input: Nothing, ctx: ToolContext) -> dict[str, int]:
    """Do nothing."""
    return {"n": input.n}


@tool("bench:guarded")
def guarded(input: Nothing, ctx: ToolContext) -> dict[str, int]:
    """Do nothing, once a person has agreed."""
    return {"n": input.n}
