"""The demo and the development stack, as a stranger runs them."""

import json
import signal
import subprocess
import sys
import time

import psutil
import pytest

from runtime.edges.demo.model_server import DemoModelServer

MINIMAL_WORKSPACE = """
agent_runtime:
  models:
    operations: {provider: openai_compatible, model: m, base_url: "http://127.0.0.1:9/v1", api_key_env: KEY}
policies: {default_decision: deny}
"""


def titles(report):
    return {event["title"]: event["start"] for event in report["calendar"]}


@pytest.fixture(scope="module")
def approved(agent_runtime, tmp_path_factory):
    """One approved run without beat, in a directory of its own."""
    cwd = tmp_path_factory.mktemp("approved")
    began = time.monotonic()
    done = agent_runtime("demo", "--approve", "--json", "--no-beat", cwd=cwd)
    return cwd, done, time.monotonic() - began


def test_the_demo_completes_with_verified_evidence_though_no_beat_sweeps(approved):
    done = approved[1]
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["status"], report["verified"]) == ("completed", True)
    assert {node["id"]: node["status"] for node in report["nodes"]} == dict.fromkeys(
        ["collect-context", "reschedule-review", "prepare-agenda", "hand-off"], "completed"
    )
    assert report["receipts"] >= 20


def test_the_whole_demo_takes_less_than_30_seconds_and_says_how_long_it_took(approved):
    _, done, wall = approved
    assert wall < 30
    # What is not counted is the end of a process that has said all it had to say.
    assert wall - 2 < json.loads(done.stdout)["seconds"] <= wall + 0.1


def test_the_calendar_was_really_changed(approved):
    assert titles(json.loads(approved[1].stdout)) == {
        "Stand-up": "2026-03-12T08:30:00Z",
        "Prepare the agenda": "2026-03-13T08:30:00Z",
        "Weekly review": "2026-03-13T09:00:00Z",
        "Dentist": "2026-03-13T14:00:00Z",
    }


def test_turns_and_tools_ran_in_several_processes_none_of_which_is_left(approved):
    pids = json.loads(approved[1].stdout)["worker_pids"]
    assert len(pids) >= 2
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_the_demo_leaves_nothing_but_its_state_directory(approved):
    assert [path.name for path in approved[0].iterdir()] == [".agent-runtime"]


def test_the_stand_in_is_labelled_as_no_model(approved):
    assert "scripted stand-in for a model (no AI)" in approved[1].stderr
    assert json.loads(approved[1].stdout)["model"] == "demo-scripted"


class OwnModel(DemoModelServer):
    """A server that the demo did not start; it remembers the key and the model's name of each request."""

    def __init__(self):
        super().__init__()
        asked = self.asked = []

        class Remembering(self._server.RequestHandlerClass):
            def _complete(self, text, document):
                asked.append((self.headers["Authorization"], document["model"]))
                super()._complete(text, document)

        self._server.RequestHandlerClass = Remembering


OWN_KEY = "own-key-4f1c"


@pytest.fixture(scope="module")
def with_own_model(agent_runtime, tmp_path_factory):
    """One approved run with a model that the environment names."""
    cwd = tmp_path_factory.mktemp("own-model")
    with OwnModel() as model:
        variables = {
            "AGENT_RUNTIME_BASE_URL": model.base_url,
            "AGENT_RUNTIME_API_KEY": OWN_KEY,
            "AGENT_RUNTIME_MODEL": "own-model",
        }
        return cwd, agent_runtime("demo", "--approve", "--json", cwd=cwd, **variables), model


def test_the_demo_completes_with_the_users_own_model_and_says_whose_it_is(with_own_model):
    _, done, model = with_own_model
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["status"], report["verified"], report["model"]) == ("completed", True, "own-model")
    assert f"your model own-model at {model.base_url}" in done.stderr
    assert "scripted" not in done.stderr
    assert "Old planning call" not in titles(report)


def test_every_turn_asks_the_users_own_model_by_its_name_with_the_users_key(with_own_model):
    _, done, model = with_own_model
    turns = sum(node["turns"] for node in json.loads(done.stdout)["nodes"])
    assert turns >= 8
    assert model.asked == [(f"Bearer {OWN_KEY}", "own-model")] * turns
    assert model.faults.state()["requests"] == turns


def test_the_users_key_is_neither_printed_nor_kept(with_own_model):
    cwd, done, _ = with_own_model
    kept = [path for path in cwd.rglob("*") if path.is_file()]
    assert {"runtime.db", "calendar.db", "workspace.yaml"} <= {path.name for path in kept}
    assert [path for path in kept if OWN_KEY.encode() in path.read_bytes()] == []
    assert OWN_KEY not in done.stdout + done.stderr


def test_a_model_that_is_named_by_half_is_told_with_what_is_missing(agent_runtime, tmp_path):
    done = agent_runtime("demo", "--json", cwd=tmp_path, AGENT_RUNTIME_BASE_URL="http://127.0.0.1:9/v1")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "MISSING_ENVIRONMENT"
    assert "set AGENT_RUNTIME_API_KEY, AGENT_RUNTIME_MODEL as well" in error["message"]


def test_without_a_terminal_the_answer_is_no_and_the_event_stays(agent_runtime, tmp_path):
    done = agent_runtime("demo", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no terminal to ask on, so the answer is no" in done.stderr
    assert "Old planning call" in titles(json.loads(done.stdout))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_development_stack_stops_clean_on_a_signal(in_foreground, tmp_path, number):
    (tmp_path / "workspace.yaml").write_text(MINIMAL_WORKSPACE)
    with in_foreground("dev", cwd=tmp_path, until="ready:", KEY="k") as process:
        stack = psutil.Process(process.pid).children(recursive=True)
        assert len(stack) >= 6
        process.send_signal(number)
        assert process.wait(30) == 0
    _, alive = psutil.wait_procs(stack, timeout=60)
    assert alive == []


@pytest.mark.chaos
def test_the_development_stack_dies_with_its_killed_parent_and_starts_again(in_foreground, tmp_path):
    (tmp_path / "workspace.yaml").write_text(MINIMAL_WORKSPACE)
    with in_foreground("dev", cwd=tmp_path, until="ready:", KEY="k") as process:
        stack = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.wait(30)
    _, alive = psutil.wait_procs(stack, timeout=60)
    assert alive == []
    with in_foreground("dev", cwd=tmp_path, until="ready:", KEY="k") as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_the_idle_development_stack_stays_under_400_mb(in_foreground, tmp_path):
    (tmp_path / "workspace.yaml").write_text(MINIMAL_WORKSPACE)
    with in_foreground("dev", cwd=tmp_path, until="ready:", KEY="k") as process:
        parent = psutil.Process(process.pid)
        pss = sum(each.memory_full_info().pss for each in [parent, *parent.children(recursive=True)])
        process.send_signal(signal.SIGINT)
        process.wait(30)
    assert pss < 400e6


def test_the_demo_model_server_runs_by_itself_and_says_where():
    argv = [sys.executable, "-m", "runtime.edges.demo.model_server", "--port", "0"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert line.startswith("demo model server (scripted, not a model) listening on http://127.0.0.1:")
