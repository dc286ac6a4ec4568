"""The demo model server speaks HTTP as a provider does, and fails when a test tells it to."""

import json
import threading

import httpx
import pytest

from runtime.edges.demo.model_server import DemoModelServer, Fault
from runtime.errors import ConfigurationError


@pytest.fixture
def server():
    with DemoModelServer() as running:
        yield running


@pytest.fixture
def client(server):
    with httpx.Client(base_url=server.base_url, headers={"Authorization": "Bearer k"}) as http:
        yield http


def ask(client, text="/raw hi", **more):
    return client.post("chat/completions", json={"messages": [{"role": "user", "content": text}], **more})


def test_it_answers_and_says_that_it_is_no_model(client):
    reply = ask(client)
    assert reply.json()["choices"][0]["message"]["content"] == "hi"
    assert "not a model" in reply.headers["X-Demo-Model"]


def test_it_streams_server_sent_events(client):
    reply = ask(client, "/raw one two", stream=True)
    assert reply.headers["Content-Type"] == "text/event-stream"
    assert reply.text.endswith("data: [DONE]\n\n")


def test_a_connection_serves_several_requests(client):
    assert [ask(client).status_code for _ in range(3)] == [200, 200, 200]
    assert len(client._transport._pool.connections) == 1


def test_a_request_without_a_key_gets_401(client):
    assert ask(client).status_code == 200
    assert client.post("chat/completions", json={}, headers={"Authorization": "Bearer"}).status_code == 401


@pytest.mark.parametrize("body", ["", "{", "[]", "null"])
def test_a_body_that_is_no_object_gets_400(client, body):
    assert client.post("chat/completions", content=body).status_code == 400


def test_an_unknown_path_gets_404(client):
    assert client.get("no/such").status_code == 404
    assert client.post("no/such", json={}).status_code == 404


def test_a_held_request_is_answered_only_after_the_release(server, client):
    control = server.base_url.removesuffix("/v1") + "/control"
    httpx.post(control, json={"hold": "secret word"})
    assert ask(client, "/raw other").status_code == 200
    replies = []
    waiting = threading.Thread(target=lambda: replies.append(ask(client, "/raw secret word")))
    waiting.start()
    held = httpx.get(control + "/held", params={"count": 1, "timeout": 10})
    assert (held.status_code, held.json()["held"], replies) == (200, 1, [])
    httpx.post(control, json={"release": True})
    waiting.join()
    assert replies[0].status_code == 200


def test_waiting_for_a_held_request_that_never_comes_ends_with_408(server):
    control = server.base_url.removesuffix("/v1") + "/control"
    assert httpx.get(control + "/held", params={"timeout": 0.01}).status_code == 408


def test_a_fault_meets_as_many_fitting_requests_as_it_says(server, client):
    fault = {"match": "unlucky", "times": 2, "status": 429, "headers": {"Retry-After": "1"}, "body": "no"}
    httpx.post(server.base_url.removesuffix("/v1") + "/control", json={"fault": fault})
    assert ask(client).status_code == 200
    replies = [ask(client, "/raw unlucky") for _ in range(3)]
    assert [reply.status_code for reply in replies] == [429, 429, 200]
    assert (replies[0].headers["Retry-After"], replies[0].text) == ("1", "no")


def test_a_fault_can_be_a_malformed_answer(server, client):
    server.faults.add(Fault(status=200, body='{"choices": [', headers={"Content-Type": "text/plain"}))
    reply = ask(client)
    assert reply.status_code == 200
    with pytest.raises(json.JSONDecodeError):
        reply.json()


def test_requests_are_counted(server, client):
    ask(client)
    ask(client)
    assert server.faults.state() == {"requests": 2, "held": 0}


def test_a_port_in_use_is_named_with_the_fix(server):
    port = int(server.base_url.split(":")[2].split("/")[0])
    with pytest.raises(ConfigurationError, match=f"port {port} .* choose another port"):
        DemoModelServer(port)
