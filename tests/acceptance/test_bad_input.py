"""Whatever is wrong is told with its code, its value and its fix, and nothing else is lost by it.

One deployment of real worker processes serves all tests. Each bad session runs beside a good one.
"""

import json
import logging
import os
import socket
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from runtime import AgentRuntime, start_governed_agent_session
from runtime.edges.demo.model_server import DemoModelServer, Fault
from runtime.edges.embedded import EmbeddedValkey
from runtime.errors import InvalidInput, SessionNotFound, StoreUnavailable
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import Stack, running, until
from tests.harness.workspace import write_workspace

UNSET = "KEY_THAT_NOBODY_SET"

BAD_TOOLS = '''
"""Tools that go wrong in ways of their own."""

import os

from runtime import ToolContext, tool


@tool("bad:raise", effect="read")
def raises(input: dict, ctx: ToolContext) -> str:
    """Raise what is no error of ours."""
    raise ZeroDivisionError("the ledger divides by nothing")


@tool("bad:exit-once", effect="once")
def exits(input: dict, ctx: ToolContext) -> str:
    """End the process, perhaps after the effect."""
    os._exit(7)
'''


@dataclass(frozen=True)
class Deployment:
    """An application's runtime, the model server, and the worker processes."""

    runtime: AgentRuntime
    model: DemoModelServer
    workers: Stack

    def start(self, session_id, *turns, **values):
        """Start a session whose model says what ``turns`` say."""
        return start_governed_agent_session(
            runtime=self.runtime, execute_turn_input=turn_input(*turns, **values), ctx=context(session_id)
        )


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_file(folder, model, nowhere):
    """The ledger's workspace file, with bad tools, a profile without a key and one without a server."""
    path = write_workspace(folder, model.base_url)
    profile = '{provider: openai_compatible, model: m, api_key_env: %s, base_url: "%s"}'
    more = {
        "keyless": profile % (UNSET, model.base_url),
        "nowhere": profile % ("TEST_MODEL_KEY", f"http://{nowhere}/v1"),
    }
    models = "".join(f"    {name}: {text}\n" for name, text in more.items())
    text = path.read_text()
    for old, new in (
        ("  models:\n", f"  models:\n{models}"),
        ('allow_tools: ["', 'allow_tools: ["bad:raise", "bad:exit-once", "'),
        ("modules: [", "modules: [bad_tools, "),
        ("allowlist_entries: [", f'allowlist_entries: ["{nowhere}", '),
    ):
        assert old in text
        text = text.replace(old, new)
    path.write_text(text)
    (folder / "bad_tools.py").write_text(BAD_TOOLS)
    return path


@pytest.fixture(scope="module")
def deployment(tmp_path_factory):
    """Two workers and beat on SQLite and Valkey, shared by the tests of this module."""
    folder = tmp_path_factory.mktemp("bad-input")
    with pytest.MonkeyPatch.context() as patch, DemoModelServer() as model:
        patch.setenv("TEST_MODEL_KEY", "test-key")
        patch.setenv("LEDGER", str(folder / "ledger.txt"))
        patch.delenv(UNSET, raising=False)
        path = write_file(folder / "workspace", model, f"127.0.0.1:{free_port()}")
        url, state = f"sqlite:///{folder / 'runtime.db'}", folder / "state"
        with (
            EmbeddedValkey(state) as valkey,
            AgentRuntime.open(path, database_url=url, redis_url=valkey.url, state_dir=state) as runtime,
            running(path, url, valkey.url, state) as workers,
        ):
            yield Deployment(runtime, model, workers)


@pytest.fixture(scope="module", autouse=True)
def unreachable(deployment):
    """Started first, because its retries take a quarter of a minute; the other tests run meanwhile."""
    return deployment.start("nowhere", "/say Never said.", model_profile="nowhere")


@pytest.fixture
def bystander(deployment, request):
    """A good session that begins before the bad one and must complete beside it."""
    name = request.node.name
    flow = deployment.start(f"good {name}"[:200], call("ledger:put", "good"), "/say Done.")
    yield flow
    assert flow.wait(timeout=150) == "completed"
    assert deployment.runtime.verify(flow.session_id).verified


def receipts(flow, kind, tool=None):
    """Bodies of a session's receipts of one kind so far."""
    events = [event for event in flow.events(timeout=0) if event.kind == kind and not event.live]
    return [event.body for event in events if tool in (None, event.tool_name)]


def results(flow, tool=None):
    """How the receipts name the ends of a session's calls."""
    return [body["result"] for body in receipts(flow, "tool_call_finished", tool)]


def error_of(flow, tool=None):
    """The error in the receipt of a tool's first call."""
    return receipts(flow, "tool_call_finished", tool)[0]["error"]


def started(flow, tool):
    return receipts(flow, "tool_call_started", tool)


def ledger(name):
    path = Path(os.environ["LEDGER"])
    lines = path.read_text().splitlines() if path.exists() else []
    return Counter(line.rsplit(" ", 2)[0] for line in lines)[name]


def ends(deployment, flow, status="completed", timeout=150):
    assert flow.wait(timeout=timeout) == status
    found = deployment.runtime.verify(flow.session_id)
    assert found.verified, found.problem


# --- tools ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "code", "said"),
    [
        ("ledger:raise", "ENTRY_NOT_FOUND", "there is no 'x'"),
        ("bad:raise", "TOOL_EXECUTION_FAILED", "ZeroDivisionError: the ledger divides by nothing"),
        ("ledger:wrong-shape", "INVALID_OUTPUT", "returned what its declaration does not promise"),
        ("ledger:exit", "TOOL_EXECUTION_FAILED", "ended with exit code 3 in the middle of 'ledger:exit'"),
        ("ledger:hang", "TOOL_EXECUTION_FAILED", "did not end within 0.5 s, and its process was killed"),
    ],
)
def test_a_tool_that_fails_is_told_to_the_model_and_the_session_goes_on(
    deployment, bystander, tool, code, said
):
    turns = [f"/call {tool} {{}}" if tool.startswith("bad:") else call(tool), "/say I see."]
    flow = deployment.start(f"fails {tool}", *turns)
    ends(deployment, flow)
    error = error_of(flow, tool)
    assert (error["code"], len(started(flow, tool)), results(flow, tool)) == (code, 1, ["failure"])
    assert said in error["message"]
    assert flow.nodes()[0].result["assistant_message"] == "I see."


def test_a_read_tool_that_never_returns_fails_for_the_reason_timeout(deployment, bystander):
    flow = deployment.start("hangs", call("ledger:hang"), "/say Too slow.")
    ends(deployment, flow)
    assert error_of(flow, "ledger:hang")["details"] == {"reason": "timeout"}


@pytest.mark.parametrize(
    ("tool", "effects"), [("ledger:hang-once", {"hang-once doubt": 1}), ("bad:exit-once", {})]
)
@pytest.mark.parametrize("again", [False, True])
def test_a_once_tool_that_is_cut_off_is_in_doubt_until_a_person_answers(
    deployment, bystander, tool, effects, again
):
    name = "doubt again" if again else "doubt"
    turn = f'/call {tool} {{"name": "{name}"}}' if tool.startswith("ledger:") else f"/call {tool} {{}}"
    flow = deployment.start(f"{tool} {name}", turn, "/say Noted.")
    assert flow.wait(until={"waiting_approval"}, timeout=150)
    (question,) = deployment.runtime.approvals(flow.session_id)
    assert (question.kind, question.tool_name) == ("in_doubt", tool)
    assert "check the target; to run it again may do it twice" in question.message
    assert results(flow, tool) == ["in_doubt"]
    answer(deployment, question, approved=again)
    if again:  # it is cut off again, so it is in doubt again: a new question
        until(lambda: deployment.runtime.approvals(flow.session_id))
        (second,) = deployment.runtime.approvals(flow.session_id)
        assert second.request_id != question.request_id
        answer(deployment, second, approved=False)
    ends(deployment, flow)
    if effects:
        assert ledger(f"hang-once {name}") == (2 if again else 1)


def answer(deployment, question, *, approved):
    deployment.runtime.resolve_approval(
        request_id=question.request_id, approved=approved, approved_by="operator@example.com"
    )


def test_what_a_tool_prints_is_in_the_workers_log_and_not_in_its_output(deployment, bystander):
    flow = deployment.start("prints", call("ledger:print", "p"), "/say Read.")
    ends(deployment, flow)
    (finished,) = receipts(flow, "tool_call_finished", "ledger:print")
    assert (finished["result"], finished["output"]) == ("success", {"wrote": "p"})
    until(lambda: deployment.workers.said('{"result": "forged"}'))
    until(lambda: deployment.workers.said("noise"))


def test_a_tool_that_forks_answers_once(deployment, bystander):
    flow = deployment.start("forks", call("ledger:fork", "f"), "/say Read.")
    ends(deployment, flow)
    assert results(flow, "ledger:fork") == ["success"]


def test_the_application_is_told_of_a_tool_that_raises_or_returns_the_wrong_shape(deployment):
    ctx = context("host", metadata={"agent_intent": "bookkeeping"})
    for tool, code in (("ledger:raise", "ENTRY_NOT_FOUND"), ("ledger:wrong-shape", "INVALID_OUTPUT")):
        output = deployment.runtime.execute_tool(tool, {"name": "x"}, ctx)
        assert (output.success, output.error.code) == (False, code)
    assert deployment.runtime.verify("host").receipts == 4


# --- models ---------------------------------------------------------------------------------------

WHOLE = {
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}]
}


def wrong(message):
    return json.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})


@pytest.mark.parametrize(
    ("name", "body", "headers"),
    [
        ("no JSON", "Hello.", {}),
        ("JSON that was cut off", json.dumps(WHOLE)[:40], {}),
        ("an HTML page under 200", "<html><body>Sign in</body></html>", {"Content-Type": "text/html"}),
        ("an empty body", "", {}),
        ("a list", "[1, 2]", {}),
        ("no choices", "{}", {}),
        ("a message that is text", wrong("Hello."), {}),
    ],
)
def test_an_answer_that_cannot_be_read_ends_the_session_in_error(deployment, bystander, name, body, headers):
    deployment.model.faults.add(Fault(match=f"answer is {name}", status=200, body=body, headers=headers))
    flow = deployment.start(f"answer is {name}", f"/say My answer is {name}.")
    ends(deployment, flow, "error")
    error = flow.nodes()[0].error
    assert error["code"] == "PROVIDER_MALFORMED_RESPONSE"
    assert error_of(flow, "agent:execute-turn") == error
    assert len(started(flow, "agent:execute-turn")) == 1


def test_a_tool_call_whose_arguments_were_cut_off_is_asked_for_again(deployment, bystander):
    function = {"name": "ledger_put", "arguments": '{"name": "cut'}
    body = wrong({"role": "assistant", "tool_calls": [{"id": "c", "type": "function", "function": function}]})
    deployment.model.faults.add(Fault(match="arguments cut off", status=200, body=body))
    flow = deployment.start("arguments", "/say These arguments cut off the first answer.")
    ends(deployment, flow)
    assert results(flow) == ["failure", "success"]
    assert error_of(flow)["code"] == "PROVIDER_MALFORMED_RESPONSE"
    assert "arguments" in error_of(flow)["message"]


def test_a_tool_that_does_not_exist_is_told_to_the_model(deployment, bystander):
    flow = deployment.start("unknown tool", "/call no:such-tool {}", "/say I see.")
    ends(deployment, flow)
    error = error_of(flow, "no_such-tool")
    assert error["code"] == "TOOL_NOT_FOUND"
    assert "no_such-tool" in error["message"]
    assert flow.nodes()[0].result["assistant_message"] == "I see."


def test_a_missing_key_variable_is_named(deployment, bystander):
    flow = deployment.start("keyless", "/say Never said.", model_profile="keyless")
    ends(deployment, flow, "error")
    error = flow.nodes()[0].error
    assert error["code"] == "MISSING_ENVIRONMENT"
    assert error["message"] == f"the environment variable {UNSET} is unset or blank; set it"
    assert results(flow) == ["failure"]


def test_the_application_is_told_of_a_missing_key_variable(deployment):
    turn = turn_input("/say Never said.", model_profile="keyless", session_id="keyless host")
    output = deployment.runtime.execute_tool("agent:execute-turn", turn, context("keyless host"))
    assert output.error.code == "MISSING_ENVIRONMENT"
    assert UNSET in output.error.message


def test_an_unknown_model_profile_is_told_with_those_that_exist(deployment, bystander):
    flow = deployment.start("profile", "/say Never said.", model_profile="nobody")
    ends(deployment, flow, "error")
    error = flow.nodes()[0].error
    assert error["code"] == "INVALID_INPUT"
    assert "'nobody'" in error["message"]
    assert "keyless, nowhere, operations" in error["message"]
    assert results(flow) == ["failure"]


def test_a_provider_that_stays_away_is_tried_six_times_and_then_ends_the_session(deployment, unreachable):
    ends(deployment, unreachable, "error", timeout=150)
    error = unreachable.nodes()[0].error
    assert error["code"] == "PROVIDER_TRANSPORT_ERROR"
    assert error["message"].startswith("no answer from 127.0.0.1:")
    assert results(unreachable) == ["failure"] * 6


# --- servers --------------------------------------------------------------------------------------

PASSWORD = "hunter22"


def test_an_unreachable_database_is_told_at_open_without_its_password(deployment):
    port = free_port()
    url = f"postgresql://app:{PASSWORD}@127.0.0.1:{port}/app"
    with pytest.raises(
        StoreUnavailable, match=r"cannot be used.*check AGENT_RUNTIME_DATABASE_URL"
    ) as refused:
        AgentRuntime.open(deployment.runtime.settings.workspace, database_url=url)
    assert refused.value.code == "STORE_UNAVAILABLE"
    assert f"app:***@127.0.0.1:{port}/app" in str(refused.value)
    assert PASSWORD not in str(refused.value)


@pytest.mark.postgres
def test_a_database_that_was_not_migrated_is_told_with_the_command(deployment, postgres_url):
    with pytest.raises(StoreUnavailable, match=r"is at schema none.*run 'agent-runtime db upgrade'"):
        AgentRuntime.open(deployment.runtime.settings.workspace, database_url=postgres_url)


def test_a_session_started_without_redis_is_committed_and_completes_when_it_is_swept(
    deployment, bystander, caplog
):
    settings = deployment.runtime.settings
    with (
        caplog.at_level(logging.WARNING),
        AgentRuntime.open(
            settings.workspace,
            database_url=settings.database_url,
            redis_url=f"redis://:{PASSWORD}@127.0.0.1:{free_port()}/0",
        ) as cut_off,
    ):
        flow = start_governed_agent_session(
            runtime=cut_off,
            execute_turn_input=turn_input(call("ledger:put", "without redis"), "/say Done."),
            ctx=context("without redis"),
        )
        assert "the session is committed, but no worker could be told" in caplog.text
        assert "is Redis reachable" in caplog.text
        assert PASSWORD not in caplog.text
        ends(deployment, flow)
    assert ledger("put without redis") == 1


# --- the command line -----------------------------------------------------------------------------


@pytest.fixture
def command(environment, tmp_path):
    """Runs ``agent-runtime`` in an empty folder."""

    def run(*arguments, **variables):
        return subprocess.run(
            [sys.executable, "-m", "runtime.edges.cli", *arguments],
            cwd=tmp_path,
            env=environment(**variables),
            capture_output=True,
            text=True,
            timeout=150,
        )

    return run


WRONG_FILE = """\
agent_runtime:
  modles: {}
  limits: {max_turns_per_session: many}
policies:
  default_decision: perhaps
"""

PROBLEMS = [
    "workspace.yaml:2: agent_runtime.modles: unknown key — did you mean 'models'?",
    "workspace.yaml:3: agent_runtime.limits.max_turns_per_session: is not a whole number, "
    "the value is 'many' — write one, without quotes",
    "workspace.yaml:5: policies.default_decision: is not one of 'allow', 'deny' or 'approval_required', "
    "the value is 'perhaps' — write one of allow, approval_required, deny",
]


def test_every_unknown_key_and_wrong_value_is_told_with_line_value_and_fix(command, tmp_path):
    (tmp_path / "workspace.yaml").write_text(WRONG_FILE)
    said = command("config", "check")
    assert said.returncode == 1
    assert [line.removeprefix("error: ") for line in said.stdout.splitlines()] == PROBLEMS


def test_a_worker_refuses_a_wrong_workspace_file_at_start(command, tmp_path):
    (tmp_path / "workspace.yaml").write_text(WRONG_FILE)
    said = command(
        "worker", "-Q", "turns", "-P", "solo", AGENT_RUNTIME_REDIS_URL=f"redis://127.0.0.1:{free_port()}/0"
    )
    assert said.returncode == 1
    assert f"error: CONFIGURATION_ERROR: {PROBLEMS[0]}" in said.stderr


def test_a_port_in_use_is_told_with_the_fix(command, tmp_path):
    write_workspace(tmp_path, "http://127.0.0.1:9/v1")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        said = command("dev", "--redis-port", str(port))
    assert said.returncode == 1
    assert (
        f"error: CONFIGURATION_ERROR: port {port} on 127.0.0.1 is in use; "
        "stop what listens there or choose another port" in said.stderr
    )


# --- session ids ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "session_id", ["../../etc/passwd", "..", "%2e%2e%2f", "a/../b", "'; DROP TABLE step"]
)
def test_a_session_id_with_dots_and_slashes_is_just_text(deployment, bystander, session_id):
    flow = deployment.start(session_id, call("ledger:put", "dots"), "/say Done.")
    ends(deployment, flow)
    assert flow.session_id == session_id


@pytest.mark.parametrize("session_id", ["a\x00b", "x" * 10_000], ids=["NUL", "10 kB"])
def test_a_session_id_that_cannot_be_kept_is_refused_and_nothing_is_saved(deployment, session_id):
    with pytest.raises(InvalidInput, match="give 1-200 characters without control characters") as refused:
        deployment.start(session_id, "/say Hello.")
    assert refused.value.code == "INVALID_INPUT"
    assert repr(session_id[:40]) in str(refused.value)
    assert len(str(refused.value)) < 300
    with pytest.raises(InvalidInput, match="give 1-200 characters"):
        deployment.runtime.execute_tool("ledger:read", {"name": "x"}, context(session_id))
    with pytest.raises(SessionNotFound):
        deployment.runtime.session(session_id)
