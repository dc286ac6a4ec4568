"""The thin async forms give what the synchronous ones give, and the event loop goes on turning meanwhile.

Each form is made to wait for something that only the event loop lets go: were the loop blocked, it could not.
"""

import asyncio
import threading
from contextlib import ExitStack, contextmanager

import pytest
from sqlalchemy import text

from runtime import (
    AgentRuntime,
    arun_governed_agent_loop,
    astart_governed_agent_session,
    astart_governed_agent_workflow,
)
from runtime.store.engine import Database
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input, workflow
from tests.harness.witness import ledger, let_go

TICKS = 10
"""Turns of the event loop that must pass while a form waits."""

PATIENCE_SECONDS = 20.0
"""After this a watchdog lets go, so that a form that blocks the loop fails its test instead of hanging it."""


class Ticker:
    """Counts turns of the running event loop, a hundred a second."""

    def __init__(self) -> None:
        self.count = 0
        self.enough = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._next = self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self.count += 1
        if self.count >= TICKS:
            self.enough.set()
        self._next = self._loop.call_later(0.01, self._tick)

    def stop(self) -> None:
        self._next.cancel()


async def while_it_waits(form, under_way, release):
    """Await a form; let go what it waits for only after the loop has turned while it waited."""
    watchdog = threading.Timer(PATIENCE_SECONDS, release)
    watchdog.start()
    waiting = asyncio.ensure_future(form)
    try:
        await asyncio.to_thread(under_way)
        ticker = Ticker()
        await ticker.enough.wait()
        ticker.stop()
        assert watchdog.is_alive(), "the event loop was blocked until the watchdog let go"
        assert not waiting.done(), "the form did not wait for what was held"
        release()
        return await waiting
    finally:
        watchdog.cancel()


@pytest.fixture
def working(runtime):
    """Runs the session's steps in a thread beside the event loop, as a worker does beside the application."""
    inline, stop = InlineWorkers(runtime), threading.Event()

    def work():
        while not stop.wait(0.005):
            inline.drain()

    thread = threading.Thread(target=work)
    thread.start()
    yield
    stop.set()
    thread.join()


@contextmanager
def locked(runtime, session_id):
    """Hold what every change of a session needs; gives back the function that lets go."""
    with ExitStack() as held:
        other = Database(runtime.settings.database_url)
        held.callback(other.close)
        connection = held.enter_context(other.writing())
        connection.execute(text("UPDATE session SET run_id = run_id WHERE id = :id"), {"id": session_id})
        yield held.close


def held_model(model):
    """What a form waits for when the model does not answer yet."""
    return lambda: model.faults.wait_held(1, PATIENCE_SECONDS), model.faults.release


async def a_session(runtime, *turns, session_id="s-1"):
    return await astart_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(*turns), ctx=context(session_id)
    )


def test_aresult_waits_beside_the_loop(runtime, working, model):
    model.faults.hold("Done")

    async def scenario():
        flow = await a_session(runtime, call("ledger:put", "a"), "/say Done.")
        result = await while_it_waits(flow.aresult(timeout=60), *held_model(model))
        return result, await flow.astatus(), await flow.anodes()

    result, status, nodes = asyncio.run(scenario())
    assert result.unwrap()["session"]["assistant_message"] == "Done."
    assert status == "completed"
    assert {node.id: node for node in nodes} == result.nodes
    assert ledger() == {"put a": 1}


def test_await_status_waits_beside_the_loop(runtime, working, model):
    model.faults.hold("guarded")

    async def scenario():
        flow = await a_session(runtime, call("ledger:guarded", "g"), "/say Done.")
        return await while_it_waits(flow.await_status({"waiting_approval"}, timeout=60), *held_model(model))

    assert asyncio.run(scenario()) == "waiting_approval"


def test_aevents_follows_beside_the_loop_to_the_end(runtime, working, model):
    model.faults.hold("Done")

    async def scenario():
        flow = await a_session(runtime, call("ledger:put", "a"), "/say Done.")
        followed = flow.aevents()

        async def all_of_them():
            return [event async for event in followed]

        return await while_it_waits(all_of_them(), *held_model(model)), [*flow.events()]

    followed, again = asyncio.run(scenario())
    committed = [event for event in followed if not event.live]
    assert committed == again
    assert [event.kind for event in committed].count("tool_call_finished") == 3


def test_aevents_goes_on_behind_a_cursor(runtime, working):
    async def scenario():
        flow = await a_session(runtime, "/say Done.")
        await flow.aresult(timeout=60)
        whole = [event async for event in flow.aevents()]
        return whole, [event async for event in flow.aevents(after=whole[0].cursor)]

    whole, rest = asyncio.run(scenario())
    assert len(whole) > 1
    assert rest == whole[1:]


def test_acancel_waits_beside_the_loop(runtime, workers):
    async def scenario():
        flow = await a_session(runtime, "/say Never said.")
        with locked(runtime, "s-1") as release:
            await while_it_waits(flow.acancel("no longer wanted"), lambda: None, release)
        await asyncio.to_thread(workers.drain)
        return await flow.astatus()

    assert asyncio.run(scenario()) == "cancelled"


def test_aresolve_approval_waits_beside_the_loop(runtime, workers):
    async def scenario():
        flow = await a_session(runtime, call("ledger:guarded", "g"), "/say Done.")
        await asyncio.to_thread(workers.drain)
        (request,) = runtime.approvals("s-1")
        answer = {"request_id": request.request_id, "approved": True, "approved_by": "op@example.com"}
        with locked(runtime, "s-1") as release:
            await while_it_waits(runtime.aresolve_approval(**answer), lambda: None, release)
        await asyncio.to_thread(workers.drain)
        return await flow.astatus()

    assert asyncio.run(scenario()) == "completed"
    assert ledger() == {"guarded g": 1}


def test_aoutput_of_an_enqueued_turn_waits_beside_the_loop(runtime, working, model):
    model.faults.hold("Hello")

    async def scenario():
        turn = await runtime.aenqueue_turn(turn_input("/say Hello."), context("turn-1"))
        return await while_it_waits(turn.aoutput(timeout=60), *held_model(model))

    assert asyncio.run(scenario()).unwrap()["assistant_message"] == "Hello."


def test_the_host_driven_loop_runs_beside_the_event_loop(runtime, model):
    model.faults.hold("Done")
    given = turn_input(call("ledger:put", "a"), "/say Done.")

    async def scenario():
        loop = arun_governed_agent_loop(runtime=runtime, execute_turn_input=given, ctx=context())
        return await while_it_waits(loop, *held_model(model))

    result = asyncio.run(scenario())
    assert (result.kind, result.turn_count, result.tool_call_count) == ("completed", 2, 1)
    assert ledger() == {"put a": 1}


def test_aexecute_tool_runs_beside_the_event_loop(runtime):
    ctx = context(metadata={"agent_intent": "bookkeeping"})

    def under_way():
        pause = threading.Event()
        while not ledger():
            pause.wait(0.01)

    async def scenario():
        made = runtime.aexecute_tool("ledger:put", {"name": "a", "hold": True}, ctx)
        return await while_it_waits(made, under_way, let_go)

    assert asyncio.run(scenario()).unwrap() == {"wrote": "a"}


def test_a_workflow_is_started_from_the_event_loop(runtime, working):
    flow = workflow("s-1", a=(["/say A."], ()), b=(["/say B."], ()), join=(["/say J."], ("a", "b")))

    async def scenario():
        handle = await astart_governed_agent_workflow(runtime=runtime, workflow=flow, ctx=context())
        return await handle.aresult(timeout=60)

    assert asyncio.run(scenario()).unwrap()["join"]["assistant_message"] == "J."


def test_an_async_with_block_opens_a_runtime_and_closes_it_at_its_end(folder, migrated_url):
    async def scenario():
        async with AgentRuntime.open(folder / "workspace.yaml", database_url=migrated_url) as opened:
            output = await opened.aexecute_tool(
                "ledger:read", {"name": "r"}, context(metadata={"agent_intent": "bookkeeping"})
            )
            pool = opened.parts.database.engine.pool
            assert pool.checkedin() >= 1
        return output, pool.checkedin()

    output, left_open = asyncio.run(scenario())
    assert output.unwrap() == {"wrote": "r"}
    assert left_open == 0
