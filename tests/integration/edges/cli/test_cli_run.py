"""``agent-runtime run`` and ``doctor``: what a file defines runs on a real worker."""

import os
import sys

import pytest

from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.embedded import EmbeddedValkey
from runtime.edges.supervisor import Command, Supervisor

FLOW = """
session_id: "{session_id}"
nodes:
  - id: first
    execute_turn_input:
      model_profile: operations
      messages: [{{role: user, content: Say hello.}}]
  - id: second
    depends_on: [first]
    execute_turn_input:
      model_profile: operations
      messages: [{{role: user, content: Say goodbye.}}]
"""


def write_flow(folder, session_id):
    file = folder / "flow.yaml"
    file.write_text(FLOW.format(session_id=session_id))
    return str(file)


@pytest.fixture(scope="module")
def worker(home, tmp_path_factory):
    """A deployment with a scripted model, Valkey, and one worker that beats as well."""
    folder = tmp_path_factory.mktemp("worker")
    (folder / "console_notes.py").write_text((home / "console_notes.py").read_text())
    with DemoModelServer() as model, EmbeddedValkey(folder / "servers") as valkey:
        address = model.base_url.removeprefix("http://").split("/")[0]
        text = (home / "workspace.yaml").read_text()
        text = text.replace("http://127.0.0.1:9/v1", model.base_url).replace("127.0.0.1:9", address)
        (folder / "workspace.yaml").write_text(text)
        variables = {
            "AGENT_RUNTIME_REDIS_URL": valkey.url,
            "AGENT_RUNTIME_STATE_DIR": str(folder / "state"),
            "AGENT_RUNTIME_WORKSPACE": str(folder / "workspace.yaml"),
            "NOTES_KEY": "k",
        }
        celery = (sys.executable, "-m", "celery", "-A", "tasks", "worker", "-B", "-P", "threads", "-c", "4")
        quiet = ("--without-gossip", "--without-mingle", "--loglevel", "INFO", "-n", "all@test")
        env = {**os.environ, **variables, "PYTHONUNBUFFERED": "1"}
        with Supervisor(lambda name, line: None) as supervisor:
            supervisor.start(Command("worker", (*celery, *quiet), env, ready=" ready."))
            supervisor.wait_ready("worker", 60)
            yield folder, variables, supervisor.pids["worker"]


def test_a_file_runs_on_the_workers_and_its_result_is_printed(console, worker):
    folder, variables, _ = worker
    file = write_flow(folder, "from-a-file")
    said = console("run", file, "--timeout", "30", "--json", cwd=folder, **variables)
    assert said.code == 0, said.err
    assert (said.json["session_id"], said.json["status"]) == ("from-a-file", "completed")
    assert {node["id"]: node["status"] for node in said.json["nodes"]} == dict.fromkeys(
        ("first", "second"), "completed"
    )


def test_watching_ends_with_the_nodes_and_the_status(console, worker):
    folder, variables, _ = worker
    said = console(
        "run", write_flow(folder, "watched"), "--watch", "--timeout", "30", cwd=folder, **variables
    )
    assert said.code == 0, said.err
    assert said.out.splitlines()[-1] == "session watched: completed"
    assert "╰" not in said.out
    assert said.out.count("──") == 2


def test_the_doctor_tells_which_process_consumes_which_queue_and_that_beat_is_alive(console, worker):
    folder, variables, pid = worker
    said = console("doctor", "--json", cwd=folder, **variables)
    lines = {line["name"]: line for line in said.json["checks"]}
    assert (said.code, said.json["ok"]) == (0, True), said.out
    assert f"process {pid};" in lines["workers"]["text"]
    assert all(
        queue in lines["workers"]["text"] for queue in ("turns", "tools", "coordination", "maintenance")
    )
    assert lines["beat"]["level"] == "ok"


def test_without_workers_the_wait_ends_with_its_reason(console, home, application, tmp_path):
    file = write_flow(tmp_path, "stranded")
    said = console("run", file, "--timeout", "0", "--json", cwd=home)
    assert (said.code, said.json["error"]["code"]) == (1, "WAIT_TIMEOUT")
    assert "agent-runtime doctor" in said.json["error"]["message"]
    found = console("run", file, "--no-wait", "--json", cwd=home)
    assert (found.code, found.json["status"]) == (0, "active")


def test_a_wrong_file_is_told_whole_with_its_lines(console, home, tmp_path):
    file = tmp_path / "wrong.yaml"
    file.write_text("session_id: 3\nmax_turns: no\nnodes:\n  - execute_turn_input: {}\n    dependson: [x]\n")
    said = console("run", str(file), "--json", cwd=home)
    problems = said.json["error"]["details"]["problems"]
    assert (said.code, said.json["error"]["code"]) == (1, "INVALID_INPUT")
    assert [problem.split(": ")[:2] for problem in problems] == [
        ["wrong.yaml:1", "session_id"],
        ["wrong.yaml:2", "max_turns"],
        ["wrong.yaml:4", "nodes[0].id"],
        ["wrong.yaml:5", "nodes[0].dependson"],
    ]
