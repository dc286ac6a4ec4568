"""A message that does not carry the ids of its task is ignored in one line, and the worker goes on."""

import json
import logging
from types import SimpleNamespace

import pytest

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.edges.embedded import EmbeddedValkey
from runtime.live.celery_settings import ADVANCE_TASK, CALL_TASK, SWEEP_TASK, TURN_TASK
from runtime.live.publisher import producer_app
from tasks.arguments import LONGEST_ID, taking_ids
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import running, until

IDS = {"step_id": "nobody", "session_id": "nobody", "node_id": "nobody"}
SECRET = "payload-hunter22"
FORGED = [
    {},
    {"step_id": "nobody"},
    {**IDS, "step_id": None},
    {**IDS, "step_id": 7},
    {**IDS, "step_id": {SECRET: [SECRET]}},
    {**IDS, "session_id": [SECRET]},
    {**IDS, "node_id": True},
    {**IDS, "step_id": ""},
    {**IDS, "step_id": f"{SECRET}\x00"},
    {**IDS, "step_id": f"{SECRET}\ud800"},
    {**IDS, "step_id": SECRET * LONGEST_ID},
    {**IDS, SECRET: SECRET},
]
TASKS = {TURN_TASK: "turns", CALL_TASK: "tools", ADVANCE_TASK: "coordination", SWEEP_TASK: "maintenance"}
WARNING = "was ignored, since"


@pytest.fixture
def taken():
    return []


@pytest.fixture
def body(taken):
    @taking_ids("step_id", "session_id", "node_id")
    def run(task, *, step_id, session_id, node_id):
        taken.append(step_id)

    return lambda *args, **kwargs: run(SimpleNamespace(name=TURN_TASK), *args, **kwargs)


@pytest.mark.parametrize("forged", FORGED, ids=lambda forged: json.dumps(forged)[:40])
def test_arguments_that_are_not_ids_are_ignored_with_one_warning_that_quotes_none(
    body, taken, caplog, forged
):
    body(**forged)
    (record,) = caplog.records
    assert taken == []
    assert (record.levelno, record.exc_info) == (logging.WARNING, None)
    assert WARNING in record.getMessage()
    assert SECRET not in record.getMessage()


def test_arguments_without_a_name_are_ignored(body, taken, caplog):
    body("nobody", **IDS)
    assert (taken, len(caplog.records)) == ([], 1)


@pytest.mark.parametrize("step_id", ["n-1.0.0", "../../etc", "заказ 7", "x" * LONGEST_ID])
def test_any_text_that_a_database_takes_may_be_an_id(body, taken, step_id):
    body(**{**IDS, "step_id": step_id})
    assert taken == [step_id]


@pytest.fixture
def forger(valkey_of_its_own):
    app = producer_app(valkey_of_its_own.url)
    yield app
    app.close()


@pytest.fixture
def valkey_of_its_own(tmp_path):
    with EmbeddedValkey(tmp_path / "state") as server:
        yield server


def test_workers_log_no_traceback_for_forged_arguments_and_complete_their_work(
    folder, tmp_path, valkey_of_its_own, forger
):
    url = f"sqlite:///{tmp_path / 'runtime.db'}"
    where = (folder / "workspace.yaml", url, valkey_of_its_own.url, tmp_path / "state")
    with AgentRuntime.open(where[0], database_url=url, redis_url=where[2], state_dir=where[3]) as runtime:
        with running(*where, beat=False) as workers:
            for task, queue in TASKS.items():
                for forged in FORGED:
                    forger.send_task(task, kwargs=forged, queue=queue)
                forger.send_task(task, args=[SECRET, {"a": 1}, 3], queue=queue)
            flow = start_governed_agent_session(
                runtime=runtime,
                execute_turn_input=turn_input(call("ledger:put", "a"), "/say Done."),
                ctx=context(),
            )
            assert flow.wait(timeout=150) == "completed"
            ignored = len(TASKS) * (len(FORGED) + 1) - 1  # a sweep without arguments is what beat sends
            until(lambda: sum(WARNING in line for line in workers.log) >= ignored)
        said = [line for line in workers.log if WARNING in line]
        assert len(said) == ignored
        assert not [line for line in said if SECRET in line]
        assert not [line for line in workers.log if "Traceback" in line]
