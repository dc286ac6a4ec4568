"""What Redis holds for the living: streams that expire, approval waits that a flush cannot lose."""

import os
import threading

import pytest
import redis

from runtime import start_governed_agent_session
from runtime.engine.sweep import sweep
from runtime.live import keys
from runtime.live.redis_live import STREAM_SECONDS
from runtime.live.sender import Sender
from tests.harness.sessions import call, context, turn_input


@pytest.fixture
def parked(runtime, workers):
    """A session that waits for a person."""
    runtime.parts.live.client().flushall()
    flow = start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded", "g"), "/say Done."),
        ctx=context(),
    )
    workers.drain()
    assert runtime.parts.live.flush()
    return flow


def test_a_sessions_stream_holds_its_receipts_and_expires(runtime, parked):
    client = runtime.parts.live.client()
    stream = keys.evidence_stream("s-1")
    kinds = [fields["kind"] for _, fields in client.xrange(stream)]
    assert kinds == ["tool_call_started", "tool_call_finished"] * 2
    assert 0 < client.ttl(stream) <= STREAM_SECONDS


def test_a_flushed_wait_is_put_back_by_the_sweep(runtime, parked):
    client = runtime.parts.live.client()
    (request,) = runtime.approvals("s-1")
    assert client.zrange(keys.APPROVALS, 0, -1, withscores=True) == [(request.request_id, request.expires_at)]
    client.flushall()
    sweep(runtime.parts)
    assert runtime.parts.live.flush()
    assert client.zrange(keys.APPROVALS, 0, -1) == [request.request_id]


def test_waits_that_a_flush_took_are_put_back_although_more_came_since(runtime, parked, workers):
    live = runtime.parts.live
    sweep(runtime.parts)
    assert live.flush()
    live.client().flushall()
    park(runtime, workers, "s-2")
    sweep(runtime.parts)
    assert live.flush()
    assert waiting(runtime) == {each.request_id for each in runtime.approvals()}
    assert len(waiting(runtime)) == 2


def test_waits_that_could_not_be_sent_are_put_back(runtime, parked, workers, monkeypatch):
    live = runtime.parts.live
    sweep(runtime.parts)
    assert live.flush()
    live._sender.failed(redis.ConnectionError("away for a moment"))
    park(runtime, workers, "s-2")
    assert len(waiting(runtime)) == 1, "it was dropped"
    live._sender._quiet_until = 0.0  # the moment is over
    park(runtime, workers, "s-3")
    sweep(runtime.parts)
    assert live.flush()
    assert waiting(runtime) == {each.request_id for each in runtime.approvals()}
    assert len(waiting(runtime)) == 3


def park(runtime, workers, session_id):
    start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded", "g"), "/say Done."),
        ctx=context(session_id),
    )
    workers.drain()
    assert runtime.parts.live.flush()


def waiting(runtime) -> set[str]:
    return set(runtime.parts.live.client().zrange(keys.APPROVALS, 0, -1))


def test_an_answered_wait_is_gone(runtime, parked):
    (request,) = runtime.approvals("s-1")
    runtime.resolve_approval(request_id=request.request_id, approved=True, approved_by="op@example.com")
    assert runtime.parts.live.flush()
    assert runtime.parts.live.client().zcard(keys.APPROVALS) == 0


def test_a_cancelled_wait_is_gone(runtime, parked):
    parked.cancel()
    assert runtime.parts.live.flush()
    assert runtime.parts.live.client().zcard(keys.APPROVALS) == 0


def test_without_redis_a_session_still_runs_to_its_end(runtime, workers, monkeypatch):
    monkeypatch.setattr(runtime.parts.live, "url", "redis://127.0.0.1:1/0")
    runtime.parts.live.close()
    flow = start_governed_agent_session(
        runtime=runtime, execute_turn_input=turn_input(call("ledger:put", "a"), "/say Done."), ctx=context()
    )
    workers.drain()
    assert flow.status() == "completed"
    assert [event.kind for event in flow.events()].count("tool_call_finished") == 3


# --- the thread that sends ------------------------------------------------------------------------


def test_what_is_put_arrives_in_order_and_in_fewer_round_trips(valkey):
    sender, pipelines = Sender(lambda: client), []
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    make = client.pipeline
    client.pipeline = lambda **given: pipelines.append(1) or make(**given)
    begun, go_on = threading.Event(), threading.Event()
    sender.put([lambda pipe: begun.set() or go_on.wait(30)])
    assert begun.wait(30)
    for number in range(50):
        sender.put([lambda pipe, number=number: pipe.rpush("sent", number)])
    go_on.set()
    assert sender.flush()
    assert client.lrange("sent", 0, -1) == [str(number) for number in range(50)]
    assert len(pipelines) == 2
    sender.close()


def test_a_command_that_cannot_be_sent_takes_nothing_later_with_it(valkey):
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    sender = Sender(lambda: client)
    sender.put([lambda pipe: pipe.set("lone", "\ud800")])
    assert sender.flush()
    sender.put([lambda pipe: pipe.set("whole", "yes")])
    assert sender.flush()
    assert client.get("whole") == "yes"
    sender.close()


def test_one_key_that_holds_something_else_mutes_nobody_else(valkey):
    client = redis.Redis.from_url(valkey.url, decode_responses=True)
    client.set("odd", "no stream")
    sender = Sender(lambda: client)
    sender.put([lambda pipe: pipe.xadd("odd", {"a": 1}), lambda pipe: pipe.xadd("even", {"a": 1})])
    assert sender.flush()
    sender.put([lambda pipe: pipe.xadd("even", {"b": 1})])
    assert sender.flush()
    assert client.xlen("even") == 2
    sender.close()


def test_a_forked_child_sends_for_itself_whatever_its_parent_was_at(valkey):
    sender = Sender(lambda: redis.Redis.from_url(valkey.url))
    sender.put([lambda pipe: pipe.set("parent", 1)])
    assert sender.flush()
    with sender._lock:
        child = os.fork()
        if child == 0:
            sender.put([lambda pipe: pipe.set("child", 1)])
            os._exit(0 if sender.flush() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert redis.Redis.from_url(valkey.url).get("child") == b"1"
    sender.close()
