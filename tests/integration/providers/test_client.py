"""Model calls over real connections: bytes, chunks, hang-ups, bounds, forks."""

import json
import multiprocessing
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from pydantic import SecretStr

from runtime.core.profile import ModelProfile, ResolvedProfile, Timeouts
from runtime.core.turn import ProviderRequest, TranscriptMessage
from runtime.errors import ErrorCode
from runtime.providers import client as client_module
from runtime.providers.client import ProviderClient
from runtime.providers.errors import ProviderError

from .server import serving

PLAIN = {"model": "served", "choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}
KEY = "sk-very-secret"


@pytest.fixture
def client():
    made = ProviderClient()
    yield made
    made.close()


def profile(url, kind="openai_compatible", **fields):
    made = ModelProfile(provider=kind, model="m", api_key_env="K", base_url=url, **fields)
    return ResolvedProfile("ops", made, url, SecretStr(KEY), ("K",), (url.split("/")[2],))


def asked(*, stream=False):
    return ProviderRequest((TranscriptMessage("user", "hello"),), stream=stream)


def answer_plainly(connection):
    connection.head()
    connection.chunk(json.dumps(PLAIN).encode())
    connection.end()


def event(content=None, finish=None):
    said = {} if content is None else {"content": content}
    chunk = {"model": "served", "choices": [{"delta": said, "finish_reason": finish}]}
    return f"data: {json.dumps(chunk, ensure_ascii=False)}\n\n".encode()


def failure(client, resolved, request=None, **bounds):
    with pytest.raises(ProviderError) as failed:
        client.execute(resolved, request or asked(), **bounds)
    error = failed.value
    chain = [error, error.__cause__, None if error.__suppress_context__ else error.__context__]
    assert not any(KEY in f"{item} {item!r}" for item in chain)
    assert KEY not in json.dumps(error.details)
    return error


def test_a_call_reaches_the_joined_endpoint_with_the_key(client):
    with serving(answer_plainly) as server:
        output = client.execute(profile(server.url + "/"), asked())
    head, body = server.requests[0]
    assert output.assistant_message == "Hi."
    assert head.startswith(b"POST /v1/chat/completions HTTP/1.1")
    assert f"authorization: Bearer {KEY}".encode() in head
    assert json.loads(body)["messages"] == [{"role": "user", "content": "hello"}]


def test_the_connection_is_used_again(client):
    with serving(answer_plainly) as server:
        for _ in range(3):
            client.execute(profile(server.url), asked())
    assert (server.connections, len(server.requests)) == (1, 3)


def test_rule_7_a_stream_cut_at_every_byte_reads_the_same(client):
    body = (
        b"\xef\xbb\xbf: hello\r\n"
        + event("é\u2028✓").replace(b"\n", b"\r\n")
        + event("😀", "stop")
        + b"data: [DONE]"
    )

    def drip(connection):
        connection.head(content_type="text/event-stream")
        for byte in body:
            connection.chunk(bytes([byte]))
        connection.end()

    seen = []
    with serving(drip) as server:
        output = client.execute(profile(server.url), asked(stream=True), on_snapshot=seen.append)
    assert output.assistant_message == "é\u2028✓😀"
    assert [snapshot.state for snapshot in seen] == ["partial", "final"]


def test_snapshots_arrive_while_the_answer_is_still_being_made(client):
    heard = threading.Event()

    def talk(connection):
        connection.head(content_type="text/event-stream; charset=latin-1")
        connection.chunk(event("é"))
        assert heard.wait(20)
        connection.chunk(event("b", "stop"))
        connection.end()

    with serving(talk) as server:
        output = client.execute(
            profile(server.url), asked(stream=True), on_snapshot=lambda snapshot: heard.set()
        )
    assert output.assistant_message == "éb"


def test_rule_9_a_reset_in_mid_stream_is_a_transport_error(client):
    def break_off(connection):
        connection.head(content_type="text/event-stream")
        connection.chunk(event("half") + event(None, "stop"))
        connection.reset()

    with serving(break_off) as server:
        error = failure(client, profile(server.url), asked(stream=True))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_TRANSPORT_ERROR, True)


def test_rule_9_a_hang_up_after_the_end_marker_does_no_harm(client):
    def break_off(connection):
        connection.head(content_type="text/event-stream")
        connection.chunk(event("whole", "stop") + b"data: [DONE]\n\n")
        connection.socket.close()

    with serving(break_off) as server:
        assert client.execute(profile(server.url), asked(stream=True)).assistant_message == "whole"


def test_rule_9_a_stream_that_stays_open_after_its_end_marker_is_not_waited_for(client):
    def stay(connection):
        connection.head(content_type="text/event-stream")
        connection.chunk(event("whole", "stop") + b"data: [DONE]\n\n")
        connection.until_gone()

    with serving(stay) as server:
        output = client.execute(profile(server.url), asked(stream=True), deadline_s=60)
        assert output.assistant_message == "whole"
        assert server.gone.wait(20)


def test_a_hang_up_before_any_answer_is_retryable(client):
    with serving(lambda connection: connection.reset()) as server:
        error = failure(client, profile(server.url))
    assert (error.code, error.retryable) == (ErrorCode.PROVIDER_TRANSPORT_ERROR, True)
    assert error.exchange.response_status is None


def test_nobody_listening_is_a_transport_error(client):
    with serving(answer_plainly) as server:
        pass
    assert failure(client, profile(server.url)).code == ErrorCode.PROVIDER_TRANSPORT_ERROR


@pytest.mark.parametrize(
    ("status", "code", "retryable"),
    [
        ("401 No", ErrorCode.PROVIDER_AUTHENTICATION_FAILED, False),
        ("429 Slow", ErrorCode.PROVIDER_RATE_LIMITED, True),
        ("529 Busy", ErrorCode.PROVIDER_HTTP_ERROR, True),
        ("307 There", ErrorCode.PROVIDER_HTTP_ERROR, False),
    ],
)
def test_statuses_map_to_codes_and_the_key_is_not_quoted(client, status, code, retryable):
    def refuse(connection):
        connection.head(status, retry_after="7", location="http://127.0.0.1:1/")
        connection.chunk(json.dumps({"error": {"message": f"bad key {KEY}", "code": 12}}).encode())
        connection.end()

    with serving(refuse) as server:
        error = failure(client, profile(server.url))
    assert (error.code, error.retryable, error.retry_after_s) == (code, retryable, 7.0 if retryable else None)
    assert error.details["provider_message"] == "bad key [key]"
    assert "provider_code" not in error.details
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", [b"<html>no</html>", b"", b"\xff\xfe", b"[1]"])
def test_rule_17_error_bodies_may_be_anything(client, body):
    def refuse(connection):
        connection.head("503 Busy", content_type="text/html")
        connection.chunk(body)
        connection.end()

    with serving(refuse) as server:
        error = failure(client, profile(server.url))
    assert error.details["response_status"] == 503
    assert error.retryable


def test_a_silent_server_is_left_after_the_read_bound(client):
    with serving(lambda connection: connection.until_gone()) as server:
        error = failure(client, profile(server.url, timeouts=Timeouts(read=0.2)))
        assert server.gone.wait(20)
    assert (error.details["reason"], error.retryable) == ("timeout", True)


def test_a_server_that_trickles_is_left_at_the_deadline(client):
    stop = threading.Event()

    def trickle(connection):
        connection.head(content_type="text/event-stream")
        while not stop.wait(0.02):
            connection.chunk(b": ping\n\n")

    with serving(trickle) as server:
        error = failure(client, profile(server.url), asked(stream=True), deadline_s=0.4)
        assert server.gone.wait(20)
        stop.set()
    assert (error.details["reason"], error.retryable) == ("deadline", True)


def test_a_cancelled_call_ends_while_the_server_is_silent_and_the_client_stays_usable(client):
    cancelled = threading.Event()
    first = threading.Event()

    def script(connection):
        if first.is_set():
            answer_plainly(connection)
        else:
            first.set()
            cancelled.set()
            connection.until_gone()

    with serving(script) as server:
        error = failure(client, profile(server.url), cancelled=cancelled.is_set)
        assert server.gone.wait(20)
        assert client.execute(profile(server.url), asked()).assistant_message == "Hi."
    assert (error.details["reason"], error.retryable) == ("cancelled", False)


def test_an_answer_without_end_is_cut_at_the_size_limit(client, monkeypatch):
    monkeypatch.setattr(client_module, "MAX_BODY_BYTES", 100_000)

    def flood(connection):
        connection.head()
        while True:
            connection.chunk(b" " * 10_000)

    with serving(flood) as server:
        error = failure(client, profile(server.url))
        assert server.gone.wait(20)
    assert error.code == ErrorCode.PROVIDER_MALFORMED_RESPONSE
    assert "larger than" in str(error)


def test_threads_share_one_client(client):
    barrier = threading.Barrier(8)

    def make(_):
        barrier.wait()
        return client.execute(profile(server.url), asked()).assistant_message

    with serving(answer_plainly) as server, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(make, range(8))) == ["Hi."] * 8


def _call_in_child(made, url, result):
    result.send(made.execute(profile(url), asked()).assistant_message)
    result.close()


def test_a_fork_does_not_share_its_parents_connection(client):
    with serving(answer_plainly) as server:
        client.execute(profile(server.url), asked())
        fork = multiprocessing.get_context("fork")
        receiving, sending = fork.Pipe(duplex=False)
        child = fork.Process(target=_call_in_child, args=(client, server.url, sending))
        child.start()
        sending.close()
        assert receiving.recv() == "Hi."
        child.join()
        client.execute(profile(server.url), asked())
    assert server.connections == 2
    receiving.close()
