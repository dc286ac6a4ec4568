"""What Redis holds for the living: streams that expire, approval waits that a flush cannot lose."""

import pytest

from runtime import start_governed_agent_session
from runtime.engine.sweep import sweep
from runtime.live import keys
from runtime.live.redis_live import STREAM_SECONDS
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
