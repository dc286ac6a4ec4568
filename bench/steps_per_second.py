"""Twenty linear sessions side by side on PostgreSQL: steps per second beside the relays."""

from __future__ import annotations

from bench.figure import Figure, Line, Spread, ratios
from bench.lab import Lab
from bench.linear import run_relays, run_sessions, steps_of


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Interleave rounds of sessions, of relays with two commits a step, and of bare relays."""
    sessions, calls, rounds = (8, 7, 2) if quick else (20, 25, 5)
    steps = steps_of(calls)
    lab.start_workers()
    run_relays(lab, 2, 10, pg=True)  # connections, and tool processes, are made before the first round
    run_sessions(lab, 4, 4)
    product, relay_pg, relay = [], [], []
    for _ in range(rounds):
        product.append(sessions * steps / run_sessions(lab, sessions, calls)[1])
        relay_pg.append(sessions * steps / run_relays(lab, sessions, steps, pg=True)[1])
        relay.append(sessions * steps / run_relays(lab, sessions, steps, pg=False)[1])
    shape = f"{sessions} sessions × {steps} steps"
    return [
        Line(shape, "steps/s", Spread.of(product)),
        Line("relay_pg", "steps/s", Spread.of(relay_pg)),
        Line("relay", "steps/s", Spread.of(relay)),
        Line("sessions / relay_pg", "×", ratios(product, relay_pg), at_least=0.6),
    ]


FIGURE = Figure("steps", "linear sessions side by side, PostgreSQL", measure)
