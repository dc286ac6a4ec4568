"""A small deployment without servers: a workspace, an SQLite database, and sessions of the real runtime."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime import AgentRuntime, start_governed_agent_workflow

ROOT = Path(__file__).parents[4]

TOOLS = '''
from pydantic import BaseModel
from runtime import ToolContext, tool


class Note(BaseModel):
    text: str


@tool("notes:read", effect="read")
def read(input: Note, ctx: ToolContext) -> Note:
    """Read a note."""
    return input


@tool("notes:delete", effect="once")
def delete(input: Note, ctx: ToolContext) -> Note:
    """Delete a note."""
    return input
'''

WORKSPACE = """
agent_runtime:
  models:
    operations:
      {provider: openai_compatible, model: m, base_url: "http://127.0.0.1:9/v1", api_key_env: NOTES_KEY}
  intents:
    reading: {description: Look, allow_tools: ["notes:read"]}
    tidying: {description: Tidy, allow_tools: ["notes:read"], approval_required_tools: ["notes:delete"]}
  tools: {modules: [console_notes]}
security:
  allowed_scopes:
    - {type: network, posture: allowlist, allowlist_entries: ["127.0.0.1:9"]}
policies: {default_decision: deny}
"""


@dataclass(frozen=True)
class Said:
    """What one command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def json(self):
        return json.loads(self.out)


@pytest.fixture(scope="session")
def console(tmp_path_factory):
    """Runs one command to its end in a process of its own."""
    folder = tmp_path_factory.mktemp("console")
    bare = {name: value for name, value in os.environ.items() if not name.startswith("AGENT_RUNTIME_")}
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked_console.py")],
        env={**bare, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def run(*arguments, cwd, **variables):
        out, err = folder / "out", folder / "err"
        job = {
            "arguments": arguments,
            "cwd": str(cwd),
            "env": {**bare, **variables},
            "stdout": str(out),
            "stderr": str(err),
        }
        server.stdin.write(json.dumps(job) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        return Said(code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8"))

    with server:
        yield run
        server.stdin.close()


@pytest.fixture(scope="session")
def home(tmp_path_factory):
    """The directory of the deployment; commands that run there find everything by default."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "workspace.yaml").write_text(WORKSPACE)
    (folder / "console_notes.py").write_text(TOOLS)
    return folder


@pytest.fixture(scope="session")
def application(home):
    """The application that made the deployment's sessions."""
    with AgentRuntime.open(home / "workspace.yaml", state_dir=home / ".agent-runtime") as opened:
        yield opened


@pytest.fixture(scope="session")
def call(application):
    """Makes one host-driven call."""

    def make(session_id, tool, text, intent="tidying"):
        ctx = {
            "run_id": "run",
            "task_id": "task",
            "session_id": session_id,
            "metadata": {"agent_intent": intent},
        }
        return application.execute_tool(tool, {"text": text}, ctx)

    return make


@pytest.fixture
def ask(call):
    """Makes one call that waits for approval; returns the request's id."""

    def make(session_id, text="old"):
        output = call(session_id, "notes:delete", text)
        assert output.error.code == "APPROVAL_REQUIRED"
        return output.error.details["request_id"]

    return make


@pytest.fixture(scope="session")
def start(application):
    """Starts a workflow of two branches and their join; no worker runs, so it stays where it is."""

    def make(session_id):
        turn = {"model_profile": "operations", "messages": [{"role": "user", "content": "go"}]}
        graph = {"gather": [], "left": ["gather"], "right": ["gather"], "join": ["left", "right"]}
        nodes = [
            {"id": name, "execute_turn_input": turn, "depends_on": after} for name, after in graph.items()
        ]
        return start_governed_agent_workflow(
            runtime=application,
            workflow={"session_id": session_id, "nodes": nodes},
            ctx={"run_id": "run", "task_id": "task", "session_id": session_id},
        )

    return make
