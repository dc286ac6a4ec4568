"""The README's first example is what it says: it runs as it stands, and prints what the README shows."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.edges.demo.model_server import DemoModelServer

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "first_turn"
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def first(language, containing=""):
    return next(text for name, text in BLOCKS if name == language and containing in text)


def files():
    return {
        "first_turn.py": first("python", "AgentRuntime.open"),
        "workspace.yaml": first("yaml", "agent_runtime:"),
        "calendar_tools.py": first("python", "@tool("),
    }


@pytest.fixture
def ran(tmp_path, environment):
    """The example after it ran in a fresh process, in a folder that holds nothing but its three files."""
    for name, text in files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    with DemoModelServer() as model:
        return subprocess.run(
            [sys.executable, "first_turn.py"],
            cwd=tmp_path,
            env=environment(AGENT_RUNTIME_BASE_URL=model.base_url, AGENT_RUNTIME_API_KEY="any"),
            capture_output=True,
            text=True,
            timeout=150,
        )


def test_the_first_python_block_is_the_example():
    assert next(text for name, text in BLOCKS if name == "python") == files()["first_turn.py"]


@pytest.mark.parametrize("name", ["first_turn.py", "workspace.yaml", "calendar_tools.py"])
def test_the_readme_shows_the_files_of_the_example_as_they_are(name):
    assert files()[name] == (EXAMPLE / name).read_text(encoding="utf-8")


def test_it_prints_what_the_readme_shows(ran):
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == first("text", "Verification")


def test_the_turn_asks_for_the_one_tool_on_offer_and_the_call_moves_the_review(ran):
    asked, moved, _ = ran.stdout.splitlines()
    assert asked == "tool_request - scheduling - calendar:reschedule-event"
    assert ast.literal_eval(moved) == {
        "id": "evt-review",
        "title": "Weekly review",
        "start": "2026-03-13T09:00:00Z",
    }


def test_its_evidence_is_two_calls_of_two_receipts_and_holds(ran):
    assert ran.stdout.splitlines()[-1] == "Verification(receipts=4, blobs=0, problem=None, removed=0)"


def test_the_turn_is_the_documents_first_one():
    """Word for word, in snake_case; only the address is that of the profile."""
    source = (EXAMPLE / "first_turn.py").read_text(encoding="utf-8")
    dicts = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Dict)]
    (given,) = [node for node in dicts if "'model_profile'" in map(ast.unparse, node.keys)]
    values = dict(zip((ast.unparse(key) for key in given.keys), given.values, strict=True))
    assert ast.unparse(values.pop("'session_id'")) == "ctx.session_id"
    assert ast.unparse(values.pop("'url'")) == "os.environ['AGENT_RUNTIME_BASE_URL']"
    assert {ast.literal_eval(key): ast.literal_eval(value) for key, value in values.items()} == {
        "model_profile": "operations",
        "messages": [{"role": "user", "content": "Reschedule the weekly review for tomorrow morning."}],
        "tool_catalog": [
            {
                "name": "calendar:reschedule-event",
                "description": "Move an existing calendar event to a new time.",
            }
        ],
        "intent_catalog": [{"id": "scheduling", "description": "Schedule or reschedule work."}],
    }


def test_it_says_nothing_on_standard_error(ran):
    assert ran.stderr == ""
