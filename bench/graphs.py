"""Graphs that fan out and join, on PostgreSQL, beside native chords with and without the two commits."""

from __future__ import annotations

import time
from statistics import median

from bench.figure import Figure, Line, Spread, ratios
from bench.lab import Lab
from bench.linear import context, turn_input, wait_completed
from bench.stub import prompt
from runtime.core.model import Workflow, WorkflowNode
from runtime.live.celery_settings import ADVANCE_TASK
from runtime.orchestration import start_governed_agent_workflow

_JOIN_WAIT = """
SELECT j.started_at - max(b.finished_at) FROM step b JOIN step j ON j.session_id = b.session_id
 WHERE b.session_id LIKE %s AND b.node_id LIKE 'branch-%%' AND j.node_id = 'join'
 GROUP BY j.session_id, j.started_at
"""


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Interleave workflows, chords with commits and bare chords: one wide graph, then many small ones."""
    rounds = 2 if quick else 5
    lab.start_workers()
    _run_chords(lab, 1, 8, pg=True)
    _run_workflows(lab, 1, 8)
    shapes = ((1, 30), (3, 8)) if quick else ((1, 200), (20, 20))
    return [line for graphs, width in shapes for line in _shape(lab, graphs, width, rounds)]


def _shape(lab: Lab, graphs: int, width: int, rounds: int) -> list[Line]:
    nodes = graphs * (width + 2)
    product, waits, advances, chord_pg, chord = [], [], [], [], []
    for _ in range(rounds):
        run, seconds = _run_workflows(lab, graphs, width)
        product.append(nodes / seconds)
        waits.append(median(float(wait) for (wait,) in lab.rows(_JOIN_WAIT, f"{run}/%")))
        advances.append(
            sum(task == ADVANCE_TASK and of.startswith(f"{run}/") for _, task, of in lab.traced())
        )
        chord_pg.append(nodes / _run_chords(lab, graphs, width, pg=True))
        chord.append(nodes / _run_chords(lab, graphs, width, pg=False))
    shape = f"{graphs} × (1→{width}→1)" if graphs > 1 else f"1→{width}→1"
    return [
        Line(shape, "nodes/s", Spread.of(product)),
        Line("  chord_pg", "nodes/s", Spread.of(chord_pg)),
        Line("  chord", "nodes/s", Spread.of(chord)),
        Line("  workflows / chord_pg", "×", ratios(product, chord_pg), at_least=0.6),
        Line(
            "  last branch end → join start, p50",
            "ms",
            Spread.of(waits),
            at_most=15 if graphs == 1 else None,
        ),
        Line("  advances of a graph", "tasks", Spread.of(count / graphs for count in advances)),
    ]


def _run_workflows(lab: Lab, graphs: int, width: int) -> tuple[str, float]:
    """Run workflows of single-turn nodes side by side to their end; the run's id and the seconds it took."""
    run = lab.run_id("graph")
    branches = [f"branch-{number}" for number in range(width)]
    nodes = [_node("first"), *(_node(name, "first") for name in branches), _node("join", *branches)]
    begun = time.time()
    for number in range(graphs):
        session_id = f"{run}/{number}"
        start_governed_agent_workflow(
            runtime=lab.runtime,
            workflow=Workflow(session_id=session_id, nodes=nodes),
            ctx=context(session_id),
        )
    return run, wait_completed(lab, run, graphs, graphs * (width + 2)) - begun


def _node(name: str, *depends_on: str) -> WorkflowNode:
    return WorkflowNode(
        id=name, execute_turn_input=turn_input(prompt(0)), depends_on=list(depends_on), max_turns=1
    )


def _run_chords(lab: Lab, chords: int, width: int, *, pg: bool) -> float:
    """Run native chords side by side to their end; the seconds it took."""
    run = lab.run_id("chord")
    begun = time.time()
    for _ in range(chords):
        lab.producer.send_task(
            "bench.fan_out", kwargs={"run": run, "width": width, "pg": pg}, queue="turns", retry=False
        )
    lab.wait_done(run, chords)
    return time.time() - begun


FIGURE = Figure("graphs", "fan-out and join beside native chords, PostgreSQL", measure)
