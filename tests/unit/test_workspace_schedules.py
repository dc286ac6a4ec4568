"""Schedules of the workspace file: each problem is found at load, with its line, its value and its fix."""

from datetime import timedelta

import pytest
import yaml

from runtime.core.timetable import Overlap
from runtime.errors import ConfigurationError
from runtime.workspace import load_workspace

GOOD = {"id": "weekly", "cron": "0 9 * * MON", "file": "weekly.yaml"}
NODE = {
    "id": "only",
    "execute_turn_input": {"model_profile": "ops", "messages": [{"role": "user", "content": "Report."}]},
}


@pytest.fixture
def load(tmp_path):
    """Loads a workspace file with one schedule, beside the file that it names."""

    def write_and_load(flow=None, lanes=(), **values):
        content = {"nodes": [NODE]} if flow is None else flow
        (tmp_path / "weekly.yaml").write_text(
            content if isinstance(content, str) else yaml.safe_dump(content)
        )
        path = tmp_path / "workspace.yaml"
        lines = "\n".join(
            f"      {key}: {yaml.safe_dump(value).split(chr(10))[0]}" for key, value in values.items()
        )
        head = "agent_runtime:\n  schedules:\n    -\n"
        path.write_text(f"{head}{lines}\nlanes: {yaml.safe_dump(list(lanes), default_flow_style=True)}")
        return load_workspace(path)

    return write_and_load


def test_a_schedule_has_its_defaults(load):
    (found,) = load(**GOOD).schedules
    assert (found.overlap, found.catch_up, found.jitter) == (Overlap.SKIP, timedelta(minutes=1), None)
    assert (found.timezone, found.lane_id, found.principal) == ("UTC", None, None)
    assert found.timetable.next_after(0) == 4 * 86_400_000 + 9 * 3_600_000  # 5 January 1970


def test_a_schedule_may_say_everything(load):
    values = {"timezone": "Europe/Berlin", "overlap": "queue", "catch_up": "1h30m", "jitter": "90s"}
    (found,) = load(**GOOD, **values, lanes=[{"id": "night"}], lane_id="night", principal="ops").schedules
    assert (found.overlap, found.catch_up_ms, found.jitter_ms) == (Overlap.QUEUE, 5_400_000, 90_000)
    assert found.timetable.next_after(0) == 4 * 86_400_000 + 8 * 3_600_000


@pytest.mark.parametrize(
    ("change", "key", "says"),
    [
        ({"cron": "61 9 * * *"}, "cron", "cron '61 9 * * *': bad minute"),
        ({"cron": "@weekly"}, "cron", "is not five fields"),
        ({"cron": "0 0 30 2 *"}, "cron", "bad day-of-month"),
        ({"timezone": "Europe/Berln"}, "timezone", "timezone 'Europe/Berln' is no time zone"),
        ({"timezone": "../etc/passwd"}, "timezone", "is no time zone"),
        ({"timezone": "Europe"}, "timezone", "is no time zone"),
        ({"overlap": "both"}, "overlap", "is not one of"),
        ({"catch_up": "0s"}, "catch_up", "is no time at all"),
        ({"jitter": 5}, "jitter", "is not a duration"),
        ({"id": "week ly"}, "id", "match"),
        ({"id": "x" * 151}, "id", "at most 150"),
        ({"file": "weakly.yaml"}, "file", "cannot be read"),
        ({"lane_id": "night"}, "lane_id", "no lane has the id 'night'"),
    ],
)
def test_a_wrong_value_is_an_error_at_its_place_with_a_fix(load, change, key, says):
    with pytest.raises(ConfigurationError) as caught:
        load(**GOOD | change)
    place = list(GOOD | change).index(key) + 4
    assert str(caught.value).startswith(f"workspace.yaml:{place}: agent_runtime.schedules[0].{key}: ")
    assert says in str(caught.value)
    assert " — " in str(caught.value)


@pytest.mark.parametrize(
    ("flow", "says"),
    [
        ("nodes: [", "weekly.yaml"),
        ({}, "nodes: is missing"),
        ({"nodes": []}, "empty"),
        ({"nodes": [NODE], "node": 1}, "node: is no key of a workflow file"),
        ({"nodes": [NODE | {"depends_on": ["ghost"]}]}, "'ghost'"),
        ({"nodes": [NODE | {"depends_on": ["only"]}]}, "only -> only"),
        ({"nodes": [NODE | {"execute_turn_input": {"messages": 1}}]}, "node 'only': execute_turn_input"),
        ({"nodes": [NODE | {"execute_turn_input": {"session_id": "s"}}]}, "leave it out"),
        ({"nodes": [NODE], "max_turns": 0}, "max_turns: is 0"),
        ({"nodes": [NODE], "lane_id": "night"}, "names the lane 'night', which does not exist"),
    ],
)
def test_a_file_that_could_not_start_is_an_error_of_the_workspace_file(load, flow, says):
    with pytest.raises(ConfigurationError) as caught:
        load(flow=flow, **GOOD)
    assert str(caught.value).startswith("workspace.yaml:6: agent_runtime.schedules[0].file: 'weekly.yaml'")
    assert says in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_session_id_in_the_file_does_no_harm(load):
    assert load(flow={"session_id": "mine", "nodes": [NODE]}, **GOOD).schedules
