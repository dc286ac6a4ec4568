"""The command line: ``python -m bench``, or ``make bench``."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil  # type: ignore[import-untyped]

from bench import (
    graphs,
    idle_memory,
    long_session,
    parked,
    policy,
    scopes,
    step_costs,
    step_to_step,
    steps_per_second,
    verify,
    wakeups,
)
from bench.figure import BenchFailed, Figure, Line
from bench.lab import Lab

# Memory comes first: proportional sizes would be smaller beside other workers that share its pages.
FIGURES: tuple[Figure, ...] = (
    idle_memory.FIGURE,
    step_costs.FIGURE,
    steps_per_second.FIGURE,
    step_to_step.FIGURE,
    graphs.FIGURE,
    parked.FIGURE,
    wakeups.FIGURE,
    long_session.FIGURE,
    policy.FIGURE,
    scopes.FIGURE,
    verify.FIGURE,
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the figures that were asked for and print them; 1 when one could not be measured."""
    parser = _parser()
    given = parser.parse_args(arguments)
    names = [figure.name for figure in FIGURES]
    if unknown := set(given.figures) - set(names):
        parser.error(f"there is no figure {', '.join(sorted(unknown))}; there are {', '.join(names)}")
    chosen = [figure for figure in FIGURES if not given.figures or figure.name in given.figures]
    begun = time.monotonic()
    results: dict[str, list[Line]] = {}
    try:
        with Lab() as lab:
            for figure in chosen:
                _note(f"measuring {figure.name}: {figure.title} ...")
                results[figure.name] = figure.measure(lab, given.quick)
                if not given.json:
                    _print(figure, results[figure.name])
            facts = _facts(lab, given.quick, time.monotonic() - begun)
    except BenchFailed as error:
        _note(f"error: {error}")
        return 1
    if given.json:
        figures = {name: [line.to_json() for line in lines] for name, lines in results.items()}
        print(json.dumps({"machine": facts, "figures": figures}, ensure_ascii=False, indent=2))
    else:
        print("\n" + ", ".join(f"{name} {value}" for name, value in facts.items()))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=sys.modules["bench"].__doc__)
    known = "; ".join(f"{figure.name}: {figure.title}" for figure in FIGURES)
    parser.add_argument("figures", nargs="*", metavar="FIGURE", help=f"which ones; default: all. {known}")
    parser.add_argument("--quick", action="store_true", help="a small run, about two minutes")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _facts(lab: Lab, quick: bool, seconds: float) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "cores": psutil.cpu_count(),
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
        "seconds": round(seconds),
        "quick": quick,
    }
    if "postgres_url" in vars(lab):
        ((version, fsync),) = lab.rows(
            "SELECT split_part(current_setting('server_version'), ' ', 1), current_setting('fsync')"
        )
        facts |= {"postgresql": version, "fsync": fsync, "valkey": lab.redis.info()["server_name"]}
    return facts


def _print(figure: Figure, lines: list[Line]) -> None:
    print(f"\n{figure.name}: {figure.title}")
    for line in lines:
        verdict = {True: "met", False: "missed", None: ""}[line.met]
        print(f"  {line.name:34} {line.spread!s:>24} {line.unit:18} {line.goal:7} {verdict}".rstrip())


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
