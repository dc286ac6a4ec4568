"""The README's first example is what it says: it runs as it stands, and prints what the README shows."""

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
            timeout=60,
        )


def test_the_first_python_block_is_the_example():
    assert next(text for name, text in BLOCKS if name == "python") == files()["first_turn.py"]


@pytest.mark.parametrize("name", ["first_turn.py", "workspace.yaml", "calendar_tools.py"])
def test_the_readme_shows_the_files_of_the_example_as_they_are(name):
    assert files()[name] == (EXAMPLE / name).read_text(encoding="utf-8")


def test_it_prints_what_the_readme_shows(ran):
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == first("text", "evidence:")


def test_it_reschedules_the_review_and_its_evidence_holds(ran):
    lines = ran.stdout.splitlines()
    assert [line.partition(" ")[0] for line in lines] == [
        "calendar:list-events",
        "calendar:reschedule-event",
        "complete",
        "evidence:",
    ]
    assert "'start': '2026-03-13T09:00:00Z'" in lines[1]
    assert lines[3].endswith("problem=None)")


def test_it_says_nothing_on_standard_error(ran):
    assert ran.stderr == ""
