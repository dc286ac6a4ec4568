"""Native chords 1→n→1, bare and with two PostgreSQL commits per node: the floors of graphs."""

from __future__ import annotations

import time

from bench.figure import Figure, Line, Spread
from bench.lab import Lab


def run_chord(lab: Lab, width: int, *, pg: bool) -> float:
    """Run one chord to its end; the seconds it took."""
    run = lab.run_id("chord")
    begun = time.time()
    lab.producer.send_task(
        "bench.fan_out", kwargs={"run": run, "width": width, "pg": pg}, queue="turns", retry=False
    )
    lab.wait_done(run, 1)
    return time.time() - begun


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Interleave bare chords and chords with commits."""
    width, rounds = (40, 2) if quick else (200, 5)
    lab.start_workers()
    run_chord(lab, 8, pg=True)
    chord_pg, chord = [], []
    for _ in range(rounds):
        chord_pg.append((width + 2) / run_chord(lab, width, pg=True))
        chord.append((width + 2) / run_chord(lab, width, pg=False))
    return [
        Line(f"chord_pg 1→{width}→1", "nodes/s", Spread.of(chord_pg)),
        Line(f"chord 1→{width}→1", "nodes/s", Spread.of(chord)),
    ]


FIGURE = Figure("chords", "native chords, the floors of graphs", measure)
