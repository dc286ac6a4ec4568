"""Large random workflows of tool calls, joins and lists, and what has to come of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from runtime import WorkflowNode
from tests.harness.graphs import node
from tests.harness.sessions import call

TOOLS = ("slow:put", "slow:pay", "ledger:read")

SLOW_TOOLS = '''
"""Tools that take their time behind their effect, so that some of their calls are cut off there."""

import threading

from ledger_tools import Entry, _write

from runtime import ToolContext, tool


@tool("slow:put", effect="idempotent")
def put(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Writes an entry; writing it again is the same."""
    output = _write("put", input, ctx)
    threading.Event().wait(0.2)
    return output


@tool("slow:pay", effect="once")
def pay(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Pays once."""
    output = _write("pay", input, ctx)
    threading.Event().wait(0.2)
    return output
'''
"""A module of tools for these workflows, beside the ledger's."""

RECENT = 30
"""A node waits for some of so many nodes before it, so that the graph is as deep as it is wide."""


@dataclass(frozen=True)
class Planned:
    """A node and the number of turns and calls of each of its runs.

    Attributes:
        node: Its definition.
        turns: Turns of one run.
        calls: Calls of one run.
    """

    node: WorkflowNode
    turns: int
    calls: int


def random_workflow(size: int, seed: int) -> list[Planned]:
    """So many nodes, in an order that is not theirs: half make calls, some run for each item of a list."""
    chance = random.Random(seed)
    planned = [_planned(number, chance) for number in range(size)]
    chance.shuffle(planned)
    return planned


def _planned(number: int, chance: random.Random) -> Planned:
    name = f"n{number}"
    above = [f"n{k}" for k in range(max(0, number - RECENT), number)]
    values = {"depends_on": chance.sample(above, min(len(above), chance.choice([0, 1, 1, 2, 3])))}
    kind = chance.random()
    if kind < 0.5:
        calls = chance.choice([1, 1, 2, 3])
        lines = [call(chance.choice(TOOLS), f"{name}-{k}") for k in range(calls)]
        return Planned(node(name, "\n".join(lines), f"/say {name}", **values), turns=2, calls=calls)
    if kind < 0.58:
        values["for_each"] = list(range(chance.randint(2, 4)))
    return Planned(node(name, **values), turns=1, calls=0)
