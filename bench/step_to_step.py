"""One linear session alone on PostgreSQL: from the beginning of a step to the beginning of the next."""

from __future__ import annotations

from statistics import median

from bench.figure import Figure, Line, Spread, ratios
from bench.lab import Lab
from bench.linear import hops_ms, run_relays, run_sessions, steps_of


def measure(lab: Lab, quick: bool) -> list[Line]:
    """Interleave one session, one relay with two commits a step, and one bare relay."""
    calls, rounds = (10, 3) if quick else (25, 9)
    steps = steps_of(calls)
    lab.start_workers()
    run_relays(lab, 1, 10, pg=True)
    run_sessions(lab, 1, 4)
    product, relay_pg, relay = [], [], []
    for _ in range(rounds):
        product.append(median(hops_ms(lab, run_sessions(lab, 1, calls)[0])))
        relay_pg.append(median(hops_ms(lab, run_relays(lab, 1, steps, pg=True)[0])))
        relay.append(median(hops_ms(lab, run_relays(lab, 1, steps, pg=False)[0])))
    return [
        Line(f"one session × {steps} steps, p50", "ms", Spread.of(product)),
        Line("relay_pg, p50", "ms", Spread.of(relay_pg)),
        Line("relay, p50", "ms", Spread.of(relay)),
        Line("session / relay_pg", "×", ratios(product, relay_pg), at_most=1.6),
    ]


FIGURE = Figure("hops", "one session alone, from step to step, PostgreSQL", measure)
