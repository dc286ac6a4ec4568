"""A tool in a process of its own is held to the scopes of its call: real files, real HTTP on the loopback."""

from __future__ import annotations

import os
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from runtime.core.model import NetworkScope, PathScope
from runtime.errors import ErrorCode
from runtime.tools.context import ToolContext
from runtime.tools.process import ToolProcess, ToolSetup

SECONDS = 30.0


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"page")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def process():
    here = Path(__file__).parent
    process = ToolProcess(
        ToolSetup(modules=["guarded_tools"], base_dir=here, environ={"PATH": os.environ["PATH"]})
    )
    yield process
    process.close()


@pytest.fixture
def page():
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        server.requests = []
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(process, name, input, *scopes, root=None):
    ctx = ToolContext(
        session_id="s",
        node_id="n",
        run_id="r",
        task_id="t",
        call_id="c",
        idempotency_key="k",
        scopes=scopes,
        root=root and str(root),
    )
    return process.run(name, input, ctx.to_json(), deadline_s=SECONDS)


def test_files_are_opened_below_the_root_whatever_the_process_works_in(process, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    scopes = (PathScope(pattern="a.txt", access="read"), PathScope(pattern="b.txt", access="write"))
    output = run(process, "g:copy", {"from": "a.txt", "to": "b.txt"}, *scopes, root=tmp_path)
    assert output.unwrap() == 4
    assert (tmp_path / "b.txt").read_text() == "text"


def test_a_file_outside_the_scopes_is_scope_denied(process, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    scopes = (PathScope(pattern="a.txt", access="read"), PathScope(pattern="b/**", access="write"))
    output = run(process, "g:copy", {"from": "a.txt", "to": "c.txt"}, *scopes, root=tmp_path)
    assert output.error.code == ErrorCode.SCOPE_DENIED
    assert "may not write 'c.txt'" in output.error.message
    assert output.error.details == {"access": "write", "path": "c.txt", "scope_allowed": ["b/**"]}
    assert not (tmp_path / "c.txt").exists()


def test_an_address_within_the_scopes_is_reached_and_no_other(process, page):
    address = f"127.0.0.1:{page.server_port}"
    scope = NetworkScope(posture="allowlist", allowlist_entries=(address,))
    assert run(process, "g:fetch", {"url": f"http://{address}/"}, scope).unwrap() == "page"
    output = run(process, "g:fetch", {"url": f"http://localhost:{page.server_port}/"}, scope)
    assert output.error.code == ErrorCode.SCOPE_DENIED
    assert f"localhost:{page.server_port}" in output.error.message
    assert page.requests == ["/"]
