"""Real HTTP on the loopback: a tool reaches what its network scopes name, and is led nowhere else."""

from __future__ import annotations

import gc
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from runtime.core.model import NetworkScope
from runtime.errors import ErrorCode, ToolError
from runtime.tools.context import ToolContext


class Site(BaseHTTPRequestHandler):
    """Answers ``/``, and redirects ``/to?URL`` there."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.requests.append(self.path)
        if self.path.startswith("/to?"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to?"))
        else:
            self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    def finish(self):
        super().finish()
        self.server.left.set()

    def log_message(self, *_):
        pass


@pytest.fixture
def serve():
    started = []

    def start():
        server = ThreadingHTTPServer(("127.0.0.1", 0), Site)
        server.daemon_threads = True
        server.requests, server.left = [], threading.Event()
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        started.append((server, thread))
        return server

    yield start
    for server, thread in started:
        server.shutdown()
        thread.join()
        server.server_close()


def context(*entries, posture="allowlist"):
    scopes = (NetworkScope(posture=posture, allowlist_entries=entries or None),) if posture else ()
    return ToolContext(
        session_id="s",
        node_id="n",
        run_id="r",
        task_id="t",
        call_id="c",
        idempotency_key="k",
        scopes=scopes,
    )


def address(server, host="127.0.0.1"):
    return f"{host}:{server.server_port}"


def refused(call) -> str:
    with pytest.raises(ToolError) as caught:
        call()
    assert caught.value.code == ErrorCode.SCOPE_DENIED
    return str(caught.value)


def test_a_listed_address_is_reached(serve):
    site = serve()
    assert context(address(site)).http.get(f"http://{address(site)}/").text == "ok"


def test_another_port_of_the_host_is_refused_before_anything_is_sent(serve):
    site, other = serve(), serve()
    message = refused(lambda: context(address(site)).http.get(f"http://{address(other)}/"))
    assert address(other) in message
    assert address(site) in message
    assert other.requests == []


@pytest.mark.parametrize("given", [("off", ()), (None, ()), ("allowlist", ("other.example",))])
def test_without_a_scope_that_names_it_nothing_is_sent(serve, given):
    site = serve()
    posture, entries = given
    refused(lambda: context(*entries, posture=posture).http.get(f"http://{address(site)}/"))
    assert site.requests == []


def test_a_redirect_is_not_followed_unasked(serve):
    site = serve()
    answer = context(address(site)).http.get(f"http://{address(site)}/to?/next")
    assert answer.status_code == 302
    assert len(site.requests) == 1


def test_a_redirect_within_the_scopes_is_followed(serve):
    site, other = serve(), serve()
    client = context(address(site), address(other)).http
    answer = client.get(f"http://{address(site)}/to?http://{address(other)}/", follow_redirects=True)
    assert answer.text == "ok"
    assert other.requests == ["/"]


def test_a_redirect_out_of_the_scopes_is_refused(serve):
    site, other = serve(), serve()
    client = context(address(site)).http
    refused(lambda: client.get(f"http://{address(site)}/to?http://{address(other)}/", follow_redirects=True))
    assert len(site.requests) == 1
    assert other.requests == []


def test_a_name_is_no_address(serve):
    """Names are compared as names: who lists the address did not list what a resolver may answer with it."""
    site = serve()
    refused(lambda: context(address(site)).http.get(f"http://{address(site, 'localhost')}/"))
    assert context(address(site, "localhost")).http.get(f"http://{address(site, 'LOCALHOST')}/").text == "ok"


@pytest.mark.parametrize("host", ["0x7f.0.0.1", "127.1", "127.0.1", "2130706433"])
def test_other_spellings_of_an_address_are_refused(serve, host):
    site = serve()
    refused(lambda: context(f"127.0.0.1:{site.server_port}").http.get(f"http://{address(site, host)}/"))
    assert site.requests == []


def test_a_proxy_of_the_environment_is_not_used(serve, monkeypatch):
    site, proxy = serve(), serve()
    monkeypatch.setenv("HTTP_PROXY", f"http://{address(proxy)}")
    monkeypatch.setenv("ALL_PROXY", f"http://{address(proxy)}")
    context(address(site)).http.get(f"http://{address(site)}/")
    assert len(site.requests) == 1
    assert proxy.requests == []


def test_the_port_of_a_scheme_counts_where_a_url_names_none():
    assert "https://api.example:443" in refused(
        lambda: context("api.example:80").http.get("https://api.example/")
    )
    assert "http://api.example:80" in refused(
        lambda: context("api.example:443").http.get("http://api.example/")
    )


def test_every_access_gets_the_same_client():
    ctx = context("a.example:1")
    assert ctx.http is ctx.http


def test_connections_end_with_the_context(serve):
    site = serve()
    ctx = context(address(site))
    ctx.http.get(f"http://{address(site)}/")
    assert not site.left.is_set()
    del ctx
    gc.collect()
    assert site.left.wait(10)
