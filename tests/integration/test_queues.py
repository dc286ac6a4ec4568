"""A tool that names a queue of its own is announced where a worker would not consume it."""

import pytest

from runtime.agent_runtime import AgentRuntime
from runtime.edges.cli.config import check_workspace
from runtime.edges.embedded import EmbeddedValkey
from runtime.settings import Settings
from tasks.worker import unserved_queues
from tests.harness.stack import running, until

TOOL = '''

@tool("ledger:slow", effect="read", queue="heavy")
def slow(input: Entry, ctx: ToolContext) -> dict[str, str]:
    """Runs on a queue of its own."""
    return {"wrote": input.name}
'''
SAID = "calls of ledger:slow run on queue 'heavy', which"


@pytest.fixture
def heavy(folder):
    """A workspace in which one tool names a queue of its own."""
    with (folder / "ledger_tools.py").open("a", encoding="utf-8") as module:
        module.write(TOOL)
    return folder / "workspace.yaml"


@pytest.fixture
def opened(heavy, tmp_path):
    with AgentRuntime.open(heavy, database_url=f"sqlite:///{tmp_path / 'runtime.db'}") as runtime:
        yield runtime


@pytest.mark.parametrize(
    ("consumed", "warned"),
    [
        (["tools"], True),
        (["turns", "tools", "coordination", "maintenance"], True),
        (["tools", "heavy"], False),
        (["heavy"], False),
        (["turns", "coordination"], False),
    ],
)
def test_a_worker_for_tools_names_the_queues_of_tools_that_it_does_not_consume(opened, consumed, warned):
    said = list(unserved_queues(opened, consumed, ""))
    assert [SAID in line and "'-Q heavy'" in line for line in said] == [True] * warned


def test_a_prefix_belongs_to_the_name_of_the_queue(opened):
    (said,) = unserved_queues(opened, ["shop", "agents-tools", "heavy"], "agents-")
    assert "'-Q agents-heavy'" in said


def test_config_check_names_queues_that_no_worker_consumes_unasked(heavy):
    checked = check_workspace(Settings.load(workspace=heavy))
    (finding,) = about_queues(checked)
    assert (finding.severity, checked.good) == ("warning", True)
    assert SAID in finding.text
    assert finding.text.endswith("start one with 'agent-runtime worker -Q heavy'")


def test_tools_on_the_queues_of_the_runtime_are_not_named(folder):
    assert about_queues(check_workspace(Settings.load(workspace=folder / "workspace.yaml"))) == []


def about_queues(checked) -> list:
    return [finding for finding in checked.findings if "queue" in finding.text]


def test_the_worker_for_tools_says_it_once_when_it_starts(heavy, tmp_path):
    with EmbeddedValkey(tmp_path / "state") as valkey:
        url = f"sqlite:///{tmp_path / 'runtime.db'}"
        with running(heavy, url, valkey.url, tmp_path / "state", beat=False) as workers:
            until(lambda: workers.said(SAID), 30)
    said = [line for line in workers.log if SAID in line]
    assert [line.startswith("tools: ") for line in said] == [True]
