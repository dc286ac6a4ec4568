"""The deployment of compose.yaml: every service's own command runs here, against real servers."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
from pathlib import Path

import psutil
import pytest
import redis
import yaml

from runtime.core.profile import Timeouts
from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.embedded import valkey_binary
from runtime.edges.supervisor import Command, Supervisor
from runtime.live.celery_settings import QUEUES, celery_settings

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "first_turn"
SERVICES = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]
VARIABLES = {
    "POSTGRES_PASSWORD": "unused",
    "VALKEY_PASSWORD": "valkeypassword",
    "FLOWER_USER": "operator",
    "FLOWER_PASSWORD": "flowerpassword",
    "AGENT_RUNTIME_API_KEY": "k",
    "AGENT_RUNTIME_BASE_URL": "http://model/v1",
}
READY = {
    "worker-turns": " ready.",
    "worker-tools": " ready.",
    "worker-coordination": " ready.",
    "beat": "beat: Starting",
    "flower": "Visit me at",
}


def filled(text):
    """``text`` with its variables replaced, as Compose does it."""
    names = re.sub(r"(?<!\$)\$\{(\w+)(?::[?-][^}]*)?\}", lambda found: VARIABLES[found[1]], text)
    return names.replace("$$", "$")


def words(service):
    return [filled(word) for word in SERVICES[service]["command"]]


class Deployment:
    """Runs the services of compose.yaml on this machine: same commands and variables, other addresses."""

    def __init__(self, directory, environment, postgres_url, valkey_port, flower_port, model_url):
        self.directory = directory
        self.environment = environment
        self.flower_port = flower_port
        self.workspace = directory / "workspace"
        shutil.copytree(EXAMPLE, self.workspace)
        self.places = {
            r"postgresql://[^/]+/\w+": postgres_url,
            r"@valkey:6379": f"@127.0.0.1:{valkey_port}",
            r"http://model/v1": model_url,
            r"/workspace/": f"{self.workspace}/",
            r":5555|=5555": lambda found: found[0][0] + str(flower_port),
        }

    def here(self, text):
        for place, local in self.places.items():
            text = re.sub(place, local if callable(local) else lambda _, local=local: local, filled(text))
        return text

    def variables(self, service):
        given = SERVICES[service].get("environment", {})
        own = {name: self.here(value) for name, value in given.items()}
        state_dir = self.directory / "state"
        return self.environment(HOSTNAME=socket.gethostname(), AGENT_RUNTIME_STATE_DIR=str(state_dir), **own)

    def command(self, service):
        argv = tuple(self.here(word) for word in SERVICES[service]["command"])
        working_directory = self.directory / "cwd"
        working_directory.mkdir(exist_ok=True)
        return Command(service, argv, self.variables(service), ready=READY[service], cwd=working_directory)

    def run(self, service, argv):
        """Run one command of a service to its end."""
        return subprocess.run(
            argv, env=self.variables(service), cwd=self.directory, capture_output=True, text=True, timeout=180
        )

    def check_health(self, service):
        """Run the service's own health check once."""
        kind, *check = SERVICES[service]["healthcheck"]["test"]
        local = [self.here(word) for word in check]
        return self.run(service, ["sh", "-c", *local] if kind == "CMD-SHELL" else local)


@pytest.fixture(scope="module")
def valkey_port(tmp_path_factory, free_port):
    """Valkey with the very options of compose.yaml, on a free port."""
    data, port = tmp_path_factory.mktemp("valkey"), free_port()
    program, *options = words("valkey")
    assert program == "valkey-server"
    argv = (str(valkey_binary()), *options, "--port", str(port), "--bind", "127.0.0.1", "--dir", str(data))
    with Supervisor(lambda name, line: None) as supervisor:
        supervisor.start(Command("valkey", argv, ready="Ready to accept connections tcp"))
        supervisor.wait_ready("valkey", 20)
        yield port


@pytest.fixture(scope="module")
def model_url():
    """Address of a model server on loopback."""
    with DemoModelServer() as server:
        yield server.base_url


@pytest.fixture(scope="module")
def deployment(tmp_path_factory, environment, postgres_server, valkey_port, free_port, model_url):
    postgres_server.psql("CREATE DATABASE compose_deployment")
    directory = tmp_path_factory.mktemp("deployment")
    database_url = postgres_server.get_uri("compose_deployment")
    made = Deployment(directory, environment, database_url, valkey_port, free_port(), model_url)
    migrated = made.run("migrate", words("migrate"))
    assert migrated.returncode == 0, migrated.stderr
    return made


@pytest.fixture(scope="module")
def running(deployment):
    """All four services, ready."""
    lines = []
    with Supervisor(lambda name, line: lines.append(f"{name}: {line}"), stop_timeout=30) as supervisor:
        for service in READY:
            supervisor.start(deployment.command(service))
        for service in READY:
            supervisor.wait_ready(service, 40)
        yield supervisor, lines


def test_valkey_appends_every_write_and_evicts_nothing(valkey_port):
    with redis.Redis(port=valkey_port, password="valkeypassword", decode_responses=True) as client:
        config = {
            **client.config_get("append*"),
            **client.config_get("save"),
            **client.config_get("maxmemory-p*"),
        }
    expected = {"appendonly": "yes", "appendfsync": "everysec", "save": "", "maxmemory-policy": "noeviction"}
    assert {name: config[name] for name in expected} == expected


def test_the_migration_may_run_again(deployment):
    again = deployment.run("migrate", words("migrate"))
    assert again.returncode == 0, again.stderr


def test_every_service_starts_with_its_own_command(running):
    supervisor, _ = running
    assert set(supervisor.pids) == set(READY)
    supervisor.check()


def test_no_service_leaves_a_file_in_its_working_directory(running, deployment):
    """The containers' file systems are read-only."""
    assert list((deployment.directory / "cwd").iterdir()) == []


@pytest.mark.parametrize("service", ["worker-turns", "worker-tools", "worker-coordination", "flower"])
def test_a_running_service_passes_its_health_check(running, deployment, service):
    checked = deployment.check_health(service)
    assert checked.returncode == 0, checked.stdout + checked.stderr


FLOW = """
session_id: compose-1
nodes:
  - id: look
    execute_turn_input:
      model_profile: operations
      messages: [{role: user, content: "/call calendar:list-events {}\\n/turn\\n/say One review."}]
  - id: agenda
    execute_turn_input:
      model_profile: operations
      messages: [{role: user, content: "/say The agenda is written."}]
  - id: move
    depends_on: [look, agenda]
    context_from: [look, agenda]
    execute_turn_input:
      model_profile: operations
      messages: [{role: user, content: "Reschedule the weekly review for tomorrow morning."}]
"""


@pytest.fixture(scope="module")
def completed(running, deployment):
    """What ``agent-runtime run`` reports of a session with calls and a join, and its evidence."""
    file = deployment.directory / "flow.yaml"
    file.write_text(FLOW)
    # An application beside the services: it has their addresses, but no model key.
    ran = deployment.run("beat", ["agent-runtime", "run", str(file), "--json", "--timeout", "120"])
    assert ran.returncode == 0, ran.stdout + ran.stderr
    shown = deployment.run("beat", ["agent-runtime", "evidence", "show", "compose-1", "--json"])
    return json.loads(ran.stdout), json.loads(shown.stdout)["receipts"]


def test_a_session_with_a_tool_call_and_a_join_completes_on_the_services(completed):
    report, _ = completed
    assert report["status"] == "completed"
    nodes = {node["id"]: node for node in report["nodes"]}
    assert {name: (node["status"], node["tool_calls"]) for name, node in nodes.items()} == {
        "look": ("completed", 1),
        "agenda": ("completed", 0),
        "move": ("completed", 1),
    }
    said = "The weekly review now starts at 2026-03-13T09:00:00Z."
    assert nodes["move"]["result"]["assistant_message"] == said


def test_its_turns_ran_in_the_service_for_turns_and_its_calls_in_the_one_for_tools(running, completed):
    supervisor, _ = running
    turns, tools = (
        psutil.Process(supervisor.pids["worker-turns"]),
        psutil.Process(supervisor.pids["worker-tools"]),
    )
    family = {str(each.pid) for each in tools.children(recursive=True)}
    started = [event for event in completed[1] if event["kind"] == "tool_call_started"]
    ran = {(event["body"]["tool_name"], event["body"]["worker"].rpartition(":")[2]) for event in started}
    assert {tool for tool, pid in ran if pid == str(turns.pid)} == {"agent:execute-turn"}
    calls = {"calendar:list-events", "calendar:reschedule-event"}
    assert {tool for tool, pid in ran if pid in family} == calls
    assert len(started) == 7  # five turns, two calls


def test_its_evidence_is_verified_by_another_process(completed, deployment):
    checked = deployment.run("beat", ["agent-runtime", "evidence", "verify", "compose-1", "--json"])
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert json.loads(checked.stdout)["verified"] is True


def test_flower_refuses_a_stranger_and_lets_its_user_in(running, deployment, poll):
    address = f"http://127.0.0.1:{deployment.flower_port}"
    with pytest.raises(urllib.error.HTTPError, match="401"):
        poll(address).get("/api/workers")
    assert poll(address, "operator:flowerpassword").get("/api/workers")


def test_sigterm_ends_the_running_services_well_within_their_grace(running):
    supervisor, lines = running
    pids = supervisor.pids
    for pid in pids.values():
        os.kill(pid, signal.SIGTERM)
    ends = {end.name: end.code for end in (supervisor.failure(30) for _ in READY) if end is not None}
    assert set(ends) == set(READY), lines[-30:]
    assert not any(psutil.pid_exists(pid) for pid in pids.values())
    assert all(code >= 0 for code in ends.values()), ends


# --- what the files say ----------------------------------------------------------------------------


def test_nothing_of_ours_starts_before_the_migration_has_ended():
    needed = {name: SERVICES[name]["depends_on"]["migrate"]["condition"] for name in READY}
    assert needed == dict.fromkeys(READY, "service_completed_successfully")


def test_only_flower_is_published_and_on_loopback_alone():
    assert {name: service["ports"] for name, service in SERVICES.items() if "ports" in service} == {
        "flower": ["127.0.0.1:5555:5555"]
    }


def test_every_queue_of_the_runtime_has_a_worker():
    consumed = [
        words(name)[words(name).index("-Q") + 1].split(",") for name in SERVICES if name.startswith("worker")
    ]
    assert sorted(queue for queues in consumed for queue in queues) == sorted(QUEUES)


def test_prefork_gets_the_soft_shutdown_and_threads_the_time_of_a_turn():
    soft = celery_settings("redis://unused")["worker_soft_shutdown_timeout"]
    tools, turns = SERVICES["worker-tools"], SERVICES["worker-turns"]
    assert tools["environment"]["REMAP_SIGTERM"] == "SIGQUIT"
    assert "REMAP_SIGTERM" not in turns["environment"]
    assert int(tools["stop_grace_period"].rstrip("s")) > soft
    assert int(turns["stop_grace_period"].rstrip("s")) > Timeouts().total


def test_the_model_key_goes_to_the_turns_alone():
    has = [
        name
        for name, service in SERVICES.items()
        if "AGENT_RUNTIME_API_KEY" in service.get("environment", {})
    ]
    assert has == ["worker-turns"]


def test_no_secret_has_a_default():
    """An unset password stops Compose instead of becoming an empty one."""
    text = (ROOT / "compose.yaml").read_text()
    uses = re.findall(r"\$\{(\w*PASSWORD)([^}]*)\}", text)
    assert uses
    assert all(rest.startswith(":?") for _, rest in uses)


def test_the_image_runs_as_an_ordinary_user_and_names_no_address():
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER [1-9]\d*$", dockerfile, re.MULTILINE)
    assert "://" not in dockerfile
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"python:3.12-slim"}


def test_all_that_the_image_copies_exists_and_is_not_ignored():
    dockerfile = (ROOT / "Dockerfile").read_text()
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", dockerfile, re.MULTILINE)
    names = [name for line in copied for name in line.split()]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    assert all((ROOT / name).exists() for name in names)
    assert sorted(names) == sorted(kept)
