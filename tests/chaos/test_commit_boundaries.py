"""The process dies right before or right behind every commit of the engine; the work ends as it would have.

Each scenario is a story of an application, its workers and its operator, told in one process with a clock
that is moved by hand. For every point that a scenario passes it is told again with a death there: a new
process opens the same database, and whoever got no answer asks again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import yaml

from runtime import Workflow, start_governed_agent_session, start_governed_agent_workflow
from runtime.agent_runtime import AgentRuntime
from runtime.edges.demo.model_server import Fault
from runtime.engine.leases import Leases
from runtime.errors import ApprovalRefused, SpecTampered
from runtime.settings import Settings
from runtime.store.crashpoints import BEFORE_PUBLISH, CrashPoints, Transition
from tests.harness.graphs import answer, node, run_sql, user
from tests.harness.mortal import Deployment, Died, Fate, once_effects
from tests.harness.sessions import call, context, turn_input
from tests.harness.witness import effects

HOUR = 3_600_000


# --- the deployment -------------------------------------------------------------------------------


@pytest.fixture
def folder(folder):
    """A workspace with a schedule and an approval that is asked for."""
    path = folder / "workspace.yaml"
    content = yaml.safe_load(path.read_text())
    content["agent_runtime"]["schedules"] = [
        {"id": "daily", "cron": "0 0 1 1 *", "file": "daily.yaml", "catch_up": "400d"}
    ]
    path.write_text(yaml.safe_dump(content))
    daily = {"nodes": [{"id": "only", "execute_turn_input": turn_input("/say happy new year")}]}
    (folder / "daily.yaml").write_text(yaml.safe_dump(daily))
    return folder


@pytest.fixture
def deploy(folder, migrated_url, valkey, model, monkeypatch):
    """Makes the deployment of one test, whose processes die as a fate says."""
    opened: list[Deployment] = []

    def opening() -> AgentRuntime:
        settings = Settings.load(
            workspace=folder / "workspace.yaml", database_url=migrated_url, redis_url=valkey.url
        )
        return AgentRuntime.open(settings=settings)

    def make(fate: Fate, **options) -> Deployment:
        monkeypatch.setattr(CrashPoints, "reach", lambda _, point: fate.reach(point))
        opened.append(Deployment(opening, fate, **options))
        return opened[-1]

    yield make
    for each in opened:
        each.close()


def answer_all(runtime: AgentRuntime, session_id: str) -> None:
    """What an operator does: approves what is asked first, and lets no call in doubt run again."""
    for request in runtime.approvals(session_id):
        try:
            runtime.resolve_approval(
                request_id=request.request_id, approved=request.kind == "call", approved_by="op@example.com"
            )
        except ApprovalRefused:  # the process that died had answered it
            continue


def finish(deployment: Deployment, session_id: str, end: str = "completed") -> None:
    """Let a session run, answering what it asks and resuming what is quarantined, until it has ended."""
    for _ in range(8):
        deployment.rest()
        status = deployment.handle(session_id).status()
        if status == end:
            return
        if status == "suspended":
            deployment.do(lambda runtime: runtime.resume(session_id))
        deployment.do(lambda runtime: answer_all(runtime, session_id))
    raise AssertionError(f"{session_id} is {deployment.handle(session_id).status()}, not {end}")


# --- scenarios ------------------------------------------------------------------------------------


def graph() -> Workflow:
    """Several calls in one turn, an approval, a condition, a list, a retry, wake-ups, a signal and a join."""
    calls = "\n".join([call("ledger:put", "a"), call("ledger:read", "b"), call("ledger:pay", "rent")])
    above = ["books", "refund", "reply", "each", "flaky", "later", "told"]
    nodes = (
        node("books", calls, call("ledger:guarded", "g"), answer("refund", "booked")),
        node("refund", depends_on=["books"], when={"node": "books", "intent": "refund"}),
        node("reply", depends_on=["books"], when={"node": "books", "intent": "reply"}),
        node("each", call("ledger:put", "item"), "/say each", for_each=["x", "y"]),
        node("flaky", "/say flaky"),
        node("later", wake_after="2h"),
        node("told", wake_after="3h"),
        node("join", depends_on=above, context_from=["books", "told"]),
    )
    return Workflow(session_id="graph", nodes=nodes)


def a_workflow(deployment: Deployment, model) -> None:
    """Everything that a workflow does, and all that steers it."""
    model.faults.add(Fault(match="/say flaky", times=1, status=500))
    deployment.do(
        lambda runtime: start_governed_agent_workflow(runtime=runtime, workflow=graph(), ctx=context("graph"))
    )
    deployment.do(lambda runtime: runtime.pause("graph", reason="a look first"))
    deployment.rest()
    deployment.do(lambda runtime: runtime.signal("graph", "told", [user("more")], idempotency_key="k"))
    deployment.do(lambda runtime: runtime.unpause("graph"))
    deployment.rest()
    for _ in range(3):
        deployment.pass_time(HOUR)
        deployment.rest()
    finish(deployment, "graph")
    deployment.do(lambda runtime: runtime.fork("graph", "join", new_session_id="fork"))
    finish(deployment, "fork")
    deployment.do(lambda runtime: runtime.resume("graph", idempotency_key="again"))
    deployment.rest()


WORKFLOW_ENDS = {
    "graph": (
        "completed",
        {
            "books": ("completed", "booked"),
            "refund": ("completed", "refund"),
            "reply": ("skipped", None),
            "each": ("completed", None),
            "each[0]": ("completed", "each"),
            "each[1]": ("completed", "each"),
            "flaky": ("completed", "flaky"),
            "later": ("completed", "later"),
            "told": ("completed", "told"),
            "join": ("completed", "join"),
        },
    ),
}
WORKFLOW_ENDS["fork"] = WORKFLOW_ENDS["graph"]


def waits_that_end(deployment: Deployment, model) -> None:
    """A turn budget and a resume, an expiry, a deadline, a cancellation, and a due time of a schedule."""

    def linear(name: str, *turns: str, **values):
        return deployment.do(
            lambda runtime: start_governed_agent_session(
                runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(name), **values
            )
        )

    linear("budget", call("ledger:put", "a"), "/say enough", max_turns=1)
    linear("expiring", call("ledger:guarded", "g"), "/say nobody answered")
    linear("cancelled", call("ledger:guarded", "h"), "/say never")
    overdue = Workflow(
        session_id="overdue", nodes=(node("slow", call("ledger:guarded", "i"), "/say no", deadline="6h"),)
    )
    deployment.do(
        lambda runtime: start_governed_agent_workflow(
            runtime=runtime, workflow=overdue, ctx=context("overdue")
        )
    )
    deployment.rest()
    deployment.do(lambda runtime: runtime.resume("budget", idempotency_key="k"))
    deployment.do(lambda runtime: runtime.session("cancelled").cancel("not needed"))
    deployment.rest()
    for _ in range(2):
        deployment.pass_time(20 * HOUR)
        deployment.sweep()
        deployment.rest()
    deployment.pass_time(366 * 24 * HOUR)
    deployment.sweep()
    deployment.rest()


WAITS_END = {
    "budget": ("completed", {"session": ("completed", "enough")}),
    "expiring": ("completed", {"session": ("completed", "nobody answered")}),
    "cancelled": ("cancelled", {"session": ("cancelled", None)}),
    "overdue": ("error", {"slow": ("error", None)}),
}


def lost_workers(deployment: Deployment, model) -> None:
    """Workers are lost in mid-call: a doubt, a quarantine, a cancellation, a late holder, a late start."""
    for name, tool in (
        ("doubt", "pay"),
        ("sick", "put"),
        ("dropped", "put"),
        ("stale", "put"),
        ("slow", "put"),
    ):
        deployment.do(
            lambda runtime, name=name, tool=tool: start_governed_agent_session(
                runtime=runtime,
                execute_turn_input=turn_input(call(f"ledger:{tool}", name), f"/say {name}"),
                ctx=context(name),
            )
        )
        {"stale": stay_away, "slow": start_late}.get(name, lose_the_call)(deployment, name)
        if name == "dropped":
            deployment.do(lambda runtime: runtime.session("dropped").cancel())
    deployment.rest()
    for name in ("doubt", "sick", "stale", "slow"):
        finish(deployment, name)


LOST_END = {
    "doubt": ("completed", {"session": ("completed", "doubt")}),
    "sick": ("completed", {"session": ("completed", "sick")}),
    "dropped": ("cancelled", {"session": ("cancelled", None)}),
    "stale": ("completed", {"session": ("completed", "stale")}),
    "slow": ("completed", {"session": ("completed", "slow")}),
}


def at_its_call(deployment: Deployment, name: str) -> bool:
    """Run a session up to its tool call; return whether that is still to be made."""
    for _ in range(20):
        rows = deployment.read(
            "SELECT status FROM step WHERE session_id = :id AND kind = 'tool_call'", id=name
        )
        if rows and rows[0].status == "ready":
            return True
        if rows or not deployment.canvas.waiting:
            deployment.pass_time(61_000)
            deployment.sweep()
        deployment.do(lambda _: deployment.canvas.next() if deployment.canvas.waiting else None)
    return False


def lose_the_call(deployment: Deployment, name: str) -> None:
    """The worker dies behind the start of the call; a step that was lost often enough is quarantined."""
    if not at_its_call(deployment, name):
        return
    deployment.fate.planned = "start.after_commit"
    deployment.do(lambda _: deployment.canvas.drain())
    deployment.fate.planned = None
    if name == "sick":
        run_sql(
            deployment.runtime,
            "UPDATE step SET crashes = 20 WHERE session_id = 'sick' AND status = 'running'",
        )


class Meanwhile:
    """A runner between whose call and the caller something happens, once."""

    def __init__(self, inner, happens) -> None:
        self.inner, self.happens = inner, happens

    def run(self, *args, **options):
        output = self.inner.run(*args, **options)
        happens, self.happens = self.happens, lambda: None
        happens()
        return output

    def reconcile(self, *args, **options):
        return self.inner.reconcile(*args, **options)


def stay_away(deployment: Deployment, name: str) -> None:
    """The holder is so slow that another worker takes the call over before it can record."""
    if not at_its_call(deployment, name):
        return
    parts = deployment.runtime.parts

    def another_takes_over() -> None:
        (step,) = deployment.read(
            "SELECT id FROM step WHERE session_id = :id AND status = 'running'", id=name
        )
        deployment.pass_time(61_000)
        deployment.runtime.executor().run_step(step.id, ("tools",))

    parts.runner = Meanwhile(parts.runner, another_takes_over)
    deployment.do(lambda _: deployment.canvas.drain())


class Late(Leases):
    """Leases of which the first is held by a process that was asleep since it claimed."""

    def holding(self, step_id, fence, deadline_s, *, since):
        late, self.slept = (0.0 if self.slept else 20.0), True
        return super().holding(step_id, fence, deadline_s, since=since - late)

    slept = False


def start_late(deployment: Deployment, name: str) -> None:
    """The worker claims the call, and then sleeps for most of its lease."""
    if not at_its_call(deployment, name):
        return
    parts = deployment.runtime.parts
    parts.leases = Late(parts.database, parts.settings.lease_seconds, parts.settings.heartbeat_seconds)
    deployment.do(lambda _: deployment.canvas.drain())


# --- calls of the application's own process -------------------------------------------------------


def host_calls(deployment: Deployment, model) -> None:
    """An application makes calls itself; nobody repeats one whose process died: it may have happened."""
    ctx = context("host", metadata={"agent_intent": "bookkeeping"})
    for name, tool in (("a", "put"), ("b", "pay"), ("c", "read")):
        lived = deployment.attempt(
            lambda runtime, name=name, tool=tool: runtime.execute_tool(f"ledger:{tool}", {"name": name}, ctx)
        )
        if lived and name == "b":
            deployment.fate.planned = "host_start.after_commit"
            deployment.attempt(lambda runtime: runtime.execute_tool("ledger:pay", {"name": "lost"}, ctx))
            deployment.fate.planned = None
    for _ in range(3):
        deployment.pass_time(61_000)
        deployment.sweep()
    left = deployment.read("SELECT id FROM step WHERE status IN ('ready', 'running')")
    assert left == [], "a call of a process that is gone was left open"


# --- a file that changes --------------------------------------------------------------------------


def tampering(deployment: Deployment, model) -> None:
    """The workspace file changes under a worker, which stops; with the file as it was, work goes on."""
    deployment.do(
        lambda runtime: start_governed_agent_session(
            runtime=runtime, execute_turn_input=turn_input("/say unharmed"), ctx=context("file")
        )
    )
    path = deployment.runtime.workspace.path
    assert path is not None
    before = path.read_text()
    path.write_text(before.replace("max_turns_per_session: 40", "max_turns_per_session: 41"))
    try:
        deployment.canvas.next()
    except SpecTampered:
        path.write_text(before)
    except Died:
        path.write_text(before)
        deployment.replace()
    else:
        raise AssertionError("a changed file stopped nobody")
    finish(deployment, "file")


# --- the points -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Scenario:
    """A story, what of the engine it reaches, and how its sessions end.

    Attributes:
        tell: Does it all.
        reaches: The transitions that are proven by it.
        ends: Session status, and for each node its status and what its last turn said.
    """

    tell: Callable[[Deployment, object], None]
    reaches: tuple[Transition, ...]
    ends: dict[str, tuple[str, dict[str, tuple[str, str | None]]]]


T = Transition
SCENARIOS = {
    "workflow": Scenario(
        a_workflow,
        (
            T.ACTIVATE, T.SESSION_START, T.START, T.RECORD, T.PARK, T.ADVANCE, T.RESOLVE, T.PAUSE, T.UNPAUSE,
            T.RESUME, T.SIGNAL, T.FORK, T.CLAIM_READY, T.CLAIM_LOST, T.CLAIM_UNPROPAGATED,
        ),
        WORKFLOW_ENDS,
    ),
    "waits": Scenario(
        waits_that_end,
        (T.RESUME, T.CANCEL, T.EXPIRE, T.CLAIM_EXPIRED, T.CLAIM_OVERDUE, T.CLAIM_SCHEDULE),
        WAITS_END,
    ),
    "lost": Scenario(
        lost_workers, (T.DOUBT, T.QUARANTINE, T.ABANDON, T.RELEASE, T.TESTIFY, T.CLAIM_LOST), LOST_END
    ),
    "host": Scenario(host_calls, (T.HOST_START, T.HOST_RECORD, T.HOST_CRASH, T.CLAIM_HOST_CRASHED), {}),
    "file": Scenario(tampering, (T.TAMPER,), {"file": ("completed", {"session": ("completed", "unharmed")})}),
}  # fmt: skip

ELSEWHERE = {
    T.HEARTBEAT: "test_processes_are_replaced.py: it beats in a thread, beside a call that takes its time",
    T.OTHER: "no commit of the engine's has this name; a test's own statements do",
}
"""Transitions that no scenario in one process can show, and where they are shown."""

OFTEN = {T.START: (5, 11, 17), T.RECORD: (5, 11, 17), T.ADVANCE: (3, 7)}
"""Later passes of what a workflow passes again and again."""


def deaths():
    """One for each point: scenario, point, and at which of its passes."""
    for name, scenario in SCENARIOS.items():
        for transition in scenario.reaches:
            for point in transition.points[1:]:
                yield pytest.param(name, point, 1, id=f"{name}-{point}")
    for transition, passes in OFTEN.items():
        for point in transition.points[1:]:
            for nth in passes:
                name = f"workflow-{point}-{nth}"
                yield pytest.param("workflow", point, nth, id=name, marks=pytest.mark.exhaustive)
    for nth in (1, 6, 13):
        yield pytest.param("workflow", BEFORE_PUBLISH, nth, id=f"workflow-{BEFORE_PUBLISH}-{nth}")


def ends(deployment: Deployment, scenario: Scenario) -> dict[str, tuple[str, dict]]:
    """How the sessions of a scenario ended."""
    found = {}
    for session_id in scenario.ends:
        flow = deployment.handle(session_id)
        nodes = {
            each.id: (str(each.status), (each.result or {}).get("assistant_message")) for each in flow.nodes()
        }
        found[session_id] = (str(flow.status()), nodes)
    return found


def tell_and_check(deployment: Deployment, name: str, model) -> None:
    """Tell a scenario and hold what must be true at its end."""
    scenario = SCENARIOS[name]
    scenario.tell(deployment, model)
    assert ends(deployment, scenario) == scenario.ends
    deployment.check()
    once_effects(deployment.runtime, effects())
    if name == "waits":
        started = deployment.read("SELECT id, ended_status FROM session WHERE id LIKE 'daily@%'")
        assert [row.ended_status for row in started] == ["completed"]


def test_each_transition_is_reached_by_a_scenario_or_shown_elsewhere():
    reached = {transition for scenario in SCENARIOS.values() for transition in scenario.reaches}
    assert reached | set(ELSEWHERE) == set(Transition)
    assert not reached & set(ELSEWHERE)


@pytest.mark.parametrize("name", SCENARIOS)
def test_without_a_death_a_scenario_ends_as_it_says(deploy, model, name):
    deployment = deploy(Fate())
    tell_and_check(deployment, name, model)
    reached = {point.partition(".")[0] for point in deployment.fate.passed}
    assert set(SCENARIOS[name].reaches) <= reached


@pytest.mark.parametrize(("name", "point", "nth"), [*deaths()])
def test_a_death_there_changes_nothing_about_the_end(deploy, model, name, point, nth):
    fate = Fate({point: frozenset({nth})})
    deployment = deploy(fate)
    tell_and_check(deployment, name, model)
    assert fate.passed[point] >= nth, f"the scenario does not reach {point} for the {nth}th time"
    assert point in fate.died_at


@pytest.mark.parametrize("every", [31, pytest.param(47, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("loses_messages", [True, False], ids=["messages-lost", "messages-kept"])
def test_one_death_after_another_changes_nothing_about_the_end(deploy, model, every, loses_messages):
    deployment = deploy(Fate(every=every), loses_messages=loses_messages)
    tell_and_check(deployment, "workflow", model)
    assert len(deployment.fate.died_at) > 5
