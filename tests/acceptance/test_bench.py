"""The benchmarks run from one command, on servers of their own, and say what they measured."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bench.__main__ import FIGURES
from bench.figure import Line, Spread, ratios

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench(environment):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "bench", *arguments],
            cwd=ROOT,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=240,
        )

    return run


def test_the_smallest_figure_counts_what_each_kind_of_step_costs(bench):
    ran = bench("costs", "--quick", "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    lines = found["figures"]["costs"]
    counted = {(line["name"], line["unit"]): line["spread"]["median"] for line in lines}
    kinds = {name for name, _ in counted}
    assert kinds == {
        "first turn",
        "turn",
        "tool call",
        "last turn",
        "advance and settle",
        "host-driven call",
    }
    for kind in kinds - {"advance and settle"}:
        assert counted[kind, "commits"] == 2, kind  # the started receipt, then the record
        assert counted[kind, "Redis round trips"] > 0, kind
    assert found["machine"]["fsync"] == "on"


@pytest.fixture(scope="module")
def small_run(bench):
    """Graphs, parked sessions, wake-ups and long sessions, measured on few of them; lines by name."""
    ran = bench("graphs", "parked", "wakeups", "long", "--quick", "--json")
    assert ran.returncode == 0, ran.stderr
    figures = json.loads(ran.stdout)["figures"]
    return {
        figure: {line["name"].strip(): line for line in reversed(lines)} for figure, lines in figures.items()
    }


@pytest.mark.exhaustive
def test_graphs_are_measured_beside_chords_and_joined_by_them(small_run):
    found = small_run["graphs"]
    assert found["workflows / chord_pg"]["at_least"] == 0.6
    assert found["last branch end → join start, p50"]["at_most"] == 15
    assert found["last branch end → join start, p50"]["spread"]["median"] > 0
    # A coordinator's task after each of 30 branches would say that no chord was used.
    assert found["advances of a graph"]["spread"]["median"] < 15


@pytest.mark.exhaustive
def test_parked_sessions_are_measured_and_hold_no_worker(small_run):
    found = small_run["parked"]
    assert found["40 parked: worker slots"]["spread"]["high"] == 0
    assert found["worker memory per session"]["at_most"] == 0.1
    assert found["resolve → next step / bare hop"]["at_most"] == 2
    assert found["released at once / relay_pg"]["at_least"] == 0.5
    assert found["resolve → next step, p50"]["spread"]["median"] > 0


@pytest.mark.exhaustive
def test_wake_ups_are_published_after_they_are_due_and_held_by_no_worker_before(small_run):
    found = small_run["wakeups"]
    assert found["50 over 2 s: due → published, p50"]["spread"]["median"] > 0
    assert found["50 at one instant: the last"]["at_most"] == 2
    assert found["tasks that workers hold before"]["spread"]["high"] == 0


@pytest.mark.exhaustive
def test_a_late_turn_writes_as_much_as_an_early_one(small_run):
    found = small_run["long"]
    assert 0.9 < found["bytes written: turn 40 / turn 10"]["spread"]["median"] <= 1.1
    assert found["time: turn 40 / turn 10"]["at_most"] == 1.2


def test_an_unknown_figure_is_refused_with_those_that_there_are(bench):
    ran = bench("speed")
    assert ran.returncode == 2
    assert "there is no figure speed; there are memory, costs" in ran.stderr


def test_a_ratio_compares_values_of_one_round():
    assert ratios([1.0, 6.0, 3.0], [2.0, 2.0, 2.0]) == Spread(1.5, 0.5, 3.0)


@pytest.mark.parametrize(
    ("goal", "met"),
    [({"at_least": 0.6}, False), ({"at_least": 0.5}, True), ({"at_most": 0.4}, False), ({}, None)],
)
def test_a_goal_is_held_against_the_median(goal, met):
    assert Line("x", "×", Spread.of([0.4, 0.5, 0.9]), **goal).met is met


def test_the_page_of_figures_names_each_of_them():
    page = (ROOT / "docs/reference/benchmarks.md").read_text(encoding="utf-8")
    assert [figure.name for figure in FIGURES if f"`{figure.name}`" not in page] == []
