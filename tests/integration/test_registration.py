"""A Celery application of somebody else's carries the runtime, and stays what it was."""

import importlib
import os
import sys
from pathlib import Path

import pytest
from celery import Celery
from kombu import Exchange, Queue

import tasks
from runtime import AgentRuntime, start_governed_agent_session
from runtime.edges.supervisor import Command, Supervisor
from runtime.errors import ConfigurationError
from runtime.live.celery_settings import ADVANCE_TASK, CALL_TASK, SWEEP_TASK, TURN_TASK
from tests.harness.sessions import call, context, turn_input
from tests.harness.stack import FAST, until

ROOT = Path(__file__).parents[2]
OURS = [TURN_TASK, CALL_TASK, ADVANCE_TASK, SWEEP_TASK]
NAMES = ["coordination", "maintenance", "turns", "tools"]

SHOP = '''
"""A shop's Celery application, in which the runtime is a guest."""

import os
from pathlib import Path

from celery import Celery
from kombu import Queue

import tasks as agent_runtime_tasks

app = Celery("shop", broker=os.environ["SHOP_BROKER"], set_as_current=False)
app.conf.task_queues = [Queue("shop")]
app.conf.task_default_queue = "shop"
app.conf.beat_schedule = {"shop-tick": {"task": "shop.order", "schedule": 0.2, "args": ["tick"]}}


@app.task(name="shop.order", shared=False)
def order(name):
    with Path(os.environ["SHOP_ORDERS"]).open("a") as orders:
        orders.write(name + "\\n")


agent_runtime_tasks.register(app, queue_prefix="agents-")
'''


def application(**settings):
    """An application with settings of its own, in this process."""
    app = Celery("shop", broker="redis://:pw@127.0.0.1:1/0", set_as_current=False)
    app.conf.update(
        task_queues=[Queue("orders"), Queue("mails", Exchange("mails"), routing_key="mail.#")],
        task_default_queue="orders",
        task_routes={"shop.*": {"queue": "mails"}},
        beat_schedule={"shop-tick": {"task": "shop.order", "schedule": 60.0}},
        task_serializer="yaml",
        accept_content=["yaml", "json"],
        worker_prefetch_multiplier=8,
        task_acks_late=True,
        task_ignore_result=False,
        broker_transport_options={"visibility_timeout": 600},
    )
    app.conf.update(settings)
    app.task(name="shop.order", shared=False)(order)  # other tests make applications as well
    return app


def order():
    """What the application does for a living."""


@pytest.fixture
def registered():
    app = application()
    before = dict(app.conf.table())
    tasks.register(app, queue_prefix="agents-")
    return app, before


# --- what is added --------------------------------------------------------------------------------


def test_its_tasks_are_there_beside_ours(registered):
    app, _ = registered
    assert {"shop.order", *OURS} <= set(app.tasks)


def test_its_queues_stay_and_ours_carry_the_prefix(registered):
    app, _ = registered
    assert list(app.amqp.queues) == ["orders", "mails", *(f"agents-{name}" for name in NAMES)]
    mails = app.amqp.queues["mails"]
    assert (mails.exchange.name, mails.routing_key) == ("mails", "mail.#")


def test_what_is_sent_to_its_default_exchange_is_not_for_our_queues(registered):
    app, _ = registered
    bindings = {name: queue.exchange.name for name, queue in app.amqp.queues.items()}
    assert [name for name in bindings if bindings[name] == bindings["orders"]] == ["orders"]


def test_its_routes_stay_and_ours_lead_to_our_queues(registered):
    app, _ = registered
    router = app.amqp.Router()
    routed = {name: router.route({}, name)["queue"].name for name in ["shop.order", "other", *OURS]}
    assert routed == {
        "shop.order": "mails",
        "other": "orders",
        **dict(zip(OURS, (f"agents-{queue}" for queue in ("turns", "tools", *NAMES[:2])), strict=True)),
    }


def test_its_beat_entries_stay_beside_ours(registered):
    app, _ = registered
    assert {name: entry["task"] for name, entry in app.conf.beat_schedule.items()} == {
        "shop-tick": "shop.order",
        "agent-runtime-sweep": SWEEP_TASK,
    }
    assert app.conf.beat_schedule["agent-runtime-sweep"]["options"]["queue"] == "agents-maintenance"


def test_its_other_settings_are_not_touched(registered):
    app, before = registered
    after = dict(app.conf.table())
    assert {key for key in after if after[key] != before.get(key)} == {
        "task_queues",
        "task_routes",
        "beat_schedule",
    }


def test_our_tasks_bring_what_they_need_themselves(registered):
    app, _ = registered
    for name in OURS:
        task = app.tasks[name]
        assert (task.acks_late, task.ignore_result, task.serializer) == (False, True, "json")
    assert app.tasks["shop.order"].acks_late is True


def test_two_applications_of_one_process_keep_their_prefixes_apart():
    first, second, third = application(), application(), application()
    tasks.register(first, queue_prefix="a-")
    tasks.register(second, queue_prefix="b-")
    assert [app.tasks[TURN_TASK].queue_prefix for app in (first, second)] == ["a-", "b-"]
    assert not set(OURS) & set(third.tasks)


def test_queues_that_were_looked_up_before_are_looked_up_again():
    app = application()
    assert list(app.amqp.queues) == ["orders", "mails"]
    tasks.register(app)
    assert list(app.amqp.queues) == ["orders", "mails", *NAMES]


@pytest.mark.parametrize(
    ("given", "theirs"),
    [
        ({"task_queues": None}, ["orders"]),
        ({"task_queues": {"orders": {"exchange": "o", "routing_key": "o"}, "x": {}}}, ["orders", "x"]),
        ({"task_queues": (Queue("only"),)}, ["only"]),
    ],
)
def test_queues_in_each_form_of_celery_survive(given, theirs):
    app = application(**given)
    tasks.register(app)
    assert list(app.amqp.queues) == [*theirs, *NAMES]


@pytest.mark.parametrize("routes", [[{"shop.*": "mails"}], ({"shop.*": "mails"},), None])
def test_routes_in_each_form_of_celery_survive(routes):
    app = application(task_routes=routes)
    tasks.register(app)
    router = app.amqp.Router()
    assert router.route({}, TURN_TASK)["queue"].name == "turns"
    assert router.route({}, "shop.order")["queue"].name == ("mails" if routes else "orders")


# --- what is refused ------------------------------------------------------------------------------


def changeable(app):
    return dict(app.conf.beat_schedule), dict(app.conf.task_routes), list(app.conf.task_queues)


REFUSED = [
    ({"broker_url": "amqp://app:hunter22@broker//"}, r"amqp://app:\*\*\*@broker//; the runtime needs Redis"),
    ({"broker_url": "memory://"}, "memory://; the runtime needs Redis or Valkey: set broker_url"),
    ({"broker_url": "valkey://broker/0"}, "valkey://broker/0; .* set broker_url to redis://"),
    ({"accept_content": ["pickle"]}, "accepts pickle; .* add 'json' to accept_content"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_an_application_that_cannot_carry_it_is_refused_and_not_changed(settings, said):
    app = application(**settings)
    before = changeable(app)
    with pytest.raises(ConfigurationError, match=said) as refused:
        tasks.register(app)
    assert "hunter22" not in str(refused.value)
    assert changeable(app) == before
    assert not set(OURS) & set(app.tasks)


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_a_runtime_does_not_open_on_an_application_that_cannot_carry_it(folder, tmp_path, settings, said):
    with pytest.raises(ConfigurationError, match=said):
        AgentRuntime.open(
            folder / "workspace.yaml", state_dir=tmp_path / "state", celery_app=application(**settings)
        )


def test_a_queue_of_the_same_name_asks_for_a_prefix():
    app = application(task_queues=[Queue("tools"), Queue("orders")])
    with pytest.raises(ConfigurationError, match=r"\(tools\).* a queue_prefix"):
        tasks.register(app)
    tasks.register(app, queue_prefix="agents-")
    assert list(app.amqp.queues) == ["tools", "orders", *(f"agents-{name}" for name in NAMES)]


# --- with real workers ----------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path, valkey, monkeypatch):
    """The shop's application, as its own processes import it."""
    package = tmp_path / "project" / "shop"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(SHOP)
    monkeypatch.setenv("SHOP_BROKER", valkey.url)
    monkeypatch.setenv("SHOP_ORDERS", str(tmp_path / "orders"))
    monkeypatch.syspath_prepend(package.parent)
    yield importlib.import_module("shop").app
    del sys.modules["shop"]


class Processes:
    """Celery processes of the shop."""

    def __init__(self, project, environment):
        self.log = []
        self.project = project
        self.environment = {**os.environ, **FAST, **environment, "PYTHONPATH": str(ROOT)}
        self.supervisor = Supervisor(lambda name, line: self.log.append(f"{name}: {line}"), stop_timeout=5)

    def start(self, name, *arguments, ready=" ready."):
        argv = (sys.executable, "-m", "celery", "--quiet", "-A", "shop", *arguments, "--loglevel", "INFO")
        self.supervisor.start(Command(name, argv, self.environment, ready=ready, cwd=self.project))
        self.supervisor.wait_ready(name, 60)

    def said(self, *parts):
        return any(all(part in line for part in parts) for line in self.log)


@pytest.fixture
def processes(shop, tmp_path):
    made = Processes(tmp_path / "project", {"PYTHONUNBUFFERED": "1"})
    with made.supervisor:
        yield made


def orders(tmp_path):
    path = tmp_path / "orders"
    return path.read_text().splitlines() if path.exists() else []


def test_a_session_and_a_task_of_its_own_run_on_its_workers(
    shop, processes, folder, tmp_path, valkey, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    url = f"sqlite:///{tmp_path / 'runtime.db'}"
    processes.environment |= {
        "AGENT_RUNTIME_DATABASE_URL": url,
        "AGENT_RUNTIME_REDIS_URL": valkey.url,
        "AGENT_RUNTIME_WORKSPACE": str(folder / "workspace.yaml"),
        "TEST_MODEL_KEY": "test-key",
        "LEDGER": str(tmp_path / "ledger.txt"),
    }
    with AgentRuntime.open(
        folder / "workspace.yaml",
        database_url=url,
        redis_url=valkey.url,
        celery_app=shop,
        queue_prefix="agents-",
    ) as runtime:
        mixed = "shop,agents-turns,agents-coordination,agents-maintenance"
        processes.start("mixed", "worker", "-Q", mixed, "-P", "threads", "-c", "4", "-n", "mixed@%h")
        processes.start("tools", "worker", "-Q", "agents-tools", "-P", "prefork", "-c", "1", "-n", "tools@%h")
        flow = start_governed_agent_session(
            runtime=runtime,
            execute_turn_input=turn_input(call("ledger:put", "a"), "/say Done."),
            ctx=context("in the shop"),
        )
        shop.send_task("shop.order", args=["by hand"])
        # Nothing sweeps yet, so that each step was published through the shop's application.
        assert flow.wait(timeout=150) == "completed"
        assert runtime.verify("in the shop").verified
        until(lambda: "by hand" in orders(tmp_path))
        processes.start("beat", "beat", "-s", str(tmp_path / "beat"), ready="beat: Starting")
        until(lambda: "tick" in orders(tmp_path))
        until(lambda: processes.said("mixed", SWEEP_TASK, "succeeded"))


def test_a_worker_of_its_own_queues_needs_nothing_of_ours(shop, processes, tmp_path):
    processes.environment["AGENT_RUNTIME_WORKSPACE"] = str(tmp_path / "there-is-none.yaml")
    processes.start("shop", "worker", "-Q", "shop", "-P", "prefork", "-c", "1", "-n", "shop@%h")
    shop.send_task("shop.order", args=["alone"])
    until(lambda: "alone" in orders(tmp_path))
    assert not (tmp_path / "project" / ".agent-runtime").exists()
