"""The webhook is told of each request: signed, again until it answers, and nothing waits for it."""

import hashlib
import hmac
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from sqlalchemy import text

from runtime.engine.notifying import send_due, sign
from runtime.engine.sweep import sweep
from runtime.store.notifications import MOST_ATTEMPTS
from tests.harness.approving import ANN, BOB, approving, park, say

SECRET = "shared-secret"


class Receiver:
    """A receiver on loopback: answers as it is told, and keeps what it was sent."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], str]] = []
        self.answers: list[int] = []
        self.arrived = threading.Event()
        self.hold = threading.Event()
        self.hold.set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                receiver.got.append((dict(self.headers), body))
                receiver.arrived.set()
                receiver.hold.wait(60)
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.got]

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    found = Receiver()
    yield found
    found.close()


@pytest.fixture
def opened(folder, migrated_url, receiver, monkeypatch):
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    hook = {"url": receiver.url, "secret_env": "HOOK_SECRET"}
    rule = {
        "tools": ["*"],
        "approvers": {"principals": [ANN]},
        "escalate": {"after": "1h", "approvers": {"principals": [BOB]}},
    }
    with approving(folder, migrated_url, webhook=hook, rules=[rule]) as runtime:
        yield runtime


def rows(runtime):
    with runtime.parts.database.reading() as connection:
        return connection.execute(text("SELECT * FROM notification ORDER BY at, id")).all()


def due_now(runtime, sql="UPDATE notification SET due_at = 1 WHERE due_at IS NOT NULL"):
    with runtime.parts.database.writing() as connection:
        connection.execute(text(sql))


def test_what_becomes_of_a_request_is_told_without_its_input(opened, receiver):
    _, request = park(opened, "confidential")
    due_now(opened, "UPDATE approval SET escalate_at = 1")
    receiver.hold.clear()
    sweep(opened.parts)  # sends what was there on a thread of its own
    receiver.hold.set()
    say(opened, request, ANN)
    while any(row.delivered_at is None for row in rows(opened)):
        due_now(opened)
        send_due(opened.parts)
    assert {*receiver.events} == {"approval_requested", "approval_escalated", "approval_resolved"}
    bodies = [json.loads(body) for _, body in receiver.got]
    assert {(body["request_id"], body["session_id"], body["tool_name"]) for body in bodies} == {
        (request, "s-1", "ledger:guarded")
    }
    assert {body["status"] for body in bodies if body["event"] == "approval_resolved"} == {"approved"}
    assert "confidential" not in str(bodies)


def test_what_is_told_is_signed_with_its_time(opened, receiver):
    park(opened)
    assert send_due(opened.parts) == 1
    ((headers, body),) = receiver.got
    given = dict(part.split("=") for part in headers["Agent-Runtime-Signature"].split(","))
    mac = hmac.new(SECRET.encode(), f"{given['t']}.{body}".encode(), hashlib.sha256).hexdigest()
    assert hmac.compare_digest(given["v1"], mac)
    assert sign("other", int(given["t"]), body) != headers["Agent-Runtime-Signature"]


def test_a_receiver_that_fails_is_told_again_under_the_same_key_later_and_later(opened, receiver):
    park(opened)
    receiver.answers[:] = [500, 503]
    delays = []
    for _ in range(2):
        due_now(opened)
        (before,) = rows(opened)
        assert send_due(opened.parts) == 0
        (row,) = rows(opened)
        delays.append(row.due_at - row.at)
        assert row.attempts == before.attempts + 1
    assert delays[1] - delays[0] > 4_000
    assert row.error == "it answered 503"
    assert send_due(opened.parts) == 0, "it is not due yet"
    due_now(opened)
    assert send_due(opened.parts) == 1
    assert len({headers["Idempotency-Key"] for headers, _ in receiver.got}) == 1
    assert len(receiver.got) == 3
    (row,) = rows(opened)
    assert (row.due_at, row.error, row.delivered_at is None) == (None, None, False)
    assert send_due(opened.parts) == 0
    assert len(receiver.got) == 3, "what was delivered is not told again"


def test_a_sender_that_died_before_noting_the_delivery_tells_it_again_under_the_same_key(opened, receiver):
    park(opened)
    assert send_due(opened.parts) == 1
    due_now(opened, "UPDATE notification SET delivered_at = NULL, due_at = 1")
    assert send_due(opened.parts) == 1
    first, second = receiver.got
    assert (first[0]["Idempotency-Key"], first[1]) == (second[0]["Idempotency-Key"], second[1])


def test_a_receiver_that_never_answers_well_is_given_up(opened, receiver):
    park(opened)
    receiver.answers[:] = [500] * (MOST_ATTEMPTS + 1)
    for _ in range(MOST_ATTEMPTS):
        due_now(opened)
        send_due(opened.parts)
    (row,) = rows(opened)
    assert (row.attempts, row.due_at, row.delivered_at) == (MOST_ATTEMPTS, None, None)


def test_without_its_secret_nothing_is_posted(opened, receiver, monkeypatch):
    monkeypatch.delenv("HOOK_SECRET")
    park(opened)
    assert send_due(opened.parts) == 0
    assert receiver.got == []
    assert "HOOK_SECRET is not set" in rows(opened)[0].error


def test_no_tool_gets_the_secret(opened):
    assert "HOOK_SECRET" in opened.workspace.secret_variables


def test_nothing_waits_for_a_receiver_that_hangs(opened, receiver):
    _, request = park(opened)
    receiver.hold.clear()
    sweep(opened.parts)
    assert receiver.arrived.wait(60)
    sweep(opened.parts)
    assert say(opened, request, ANN).status == "approved"
    assert receiver.events == ["approval_requested"]


def test_two_senders_tell_each_thing_once(opened, receiver):
    for number in range(6):
        park(opened, session_id=f"s-{number}")
    barrier = threading.Barrier(2)

    def run():
        barrier.wait(60)
        send_due(opened.parts)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(headers["Idempotency-Key"] for headers, _ in receiver.got) == sorted(
        row.id for row in rows(opened)
    )


def test_a_host_that_parks_tells_it_too(opened, receiver):
    from tests.harness.sessions import context

    opened.execute_tool("ledger:guarded", {"name": "g"}, context(metadata={"agent_intent": "bookkeeping"}))
    assert send_due(opened.parts) == 1
    assert receiver.events == ["approval_requested"]
