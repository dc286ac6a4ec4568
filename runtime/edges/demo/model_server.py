"""A small OpenAI-compatible server on loopback whose answers come from a script, not from a model.

Run by itself it prints one line, ``demo model server (scripted, not a model) listening on URL``::

    python -m runtime.edges.demo.model_server --port 0

Faults are set in-process by the methods of `DemoModelServer`, or from another process over ``/control``:

    GET  /control                                    {"requests": n, "held": n}
    GET  /control/held?count=1&timeout=10            answers once that many requests are held, else 408
    POST /control  {"hold": "text"}                  hold every request whose body contains the text
    POST /control  {"release": true}                 let all held requests go and hold no more
    POST /control  {"fault": {"match": "text", "times": 1, "status": 500, "body": "…", "headers": {…}}}
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from runtime.edges.demo.wire import chunks, completion
from runtime.errors import ConfigurationError

READY_LINE = "demo model server (scripted, not a model) listening on"
LABEL_HEADER = ("X-Demo-Model", "scripted stand-in, not a model")


@dataclass(frozen=True)
class Fault:
    """An answer to give in place of the scripted one.

    Attributes:
        match: Text that the request body must contain; empty fits every request.
        times: How many requests get it.
        status: HTTP status.
        body: Sent as it is; may be malformed on purpose.
        headers: Further response headers; ``Content-Type`` is JSON unless given.
    """

    match: str = ""
    times: int = 1
    status: int = 500
    body: str = '{"error": {"message": "injected fault"}}'
    headers: Mapping[str, str] = field(default_factory=dict)


class Faults:
    """What the next requests meet: holds and faults. Safe to use from several threads."""

    def __init__(self) -> None:
        self._change = threading.Condition()
        self._hold: str | None = None
        self._held = 0
        self._faults: list[Fault] = []
        self._requests = 0

    def state(self) -> dict[str, int]:
        """Number of model requests so far, and of those held now."""
        with self._change:
            return {"requests": self._requests, "held": self._held}

    def hold(self, match: str = "") -> None:
        """Hold every request whose body contains ``match`` until `release`."""
        with self._change:
            self._hold = match

    def release(self) -> None:
        """Let all held requests go and hold no more."""
        with self._change:
            self._hold = None
            self._change.notify_all()

    def wait_held(self, count: int = 1, timeout: float = 10.0) -> bool:
        """Wait until ``count`` requests are held; ``False`` after ``timeout`` seconds."""
        with self._change:
            return self._change.wait_for(lambda: self._held >= count, timeout)

    def add(self, fault: Fault) -> None:
        """Give ``fault`` as the answer to the next requests that fit it."""
        with self._change:
            self._faults.append(fault)

    def meet(self, body: str) -> Fault | None:
        """Count one request, wait while it is held, and say which fault it meets."""
        with self._change:
            self._requests += 1
            if self._hold is not None and self._hold in body:
                self._held += 1
                self._change.notify_all()
                self._change.wait_for(lambda: self._hold is None)
                self._held -= 1
            for index, fault in enumerate(self._faults):
                if fault.match in body:
                    left = replace(fault, times=fault.times - 1)
                    self._faults[index : index + 1] = [left] if left.times > 0 else []
                    return fault
            return None


class DemoModelServer:
    """The scripted server in a thread of this process.

    Attributes:
        faults: Holds and faults for the next requests.
        base_url: API root for a profile's ``base_url``.

    Example:
        >>> with DemoModelServer() as server:
        ...     httpx.post(f"{server.base_url}/chat/completions", headers={"Authorization": "Bearer x"}, ...)
    """

    def __init__(self, port: int = 0) -> None:
        self.faults = Faults()
        try:
            self._server = _Server(("127.0.0.1", port), self.faults)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} on 127.0.0.1 cannot be used for the demo model server: {error}; "
                "stop what listens there or choose another port"
            ) from error
        self.base_url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        self._thread = threading.Thread(target=self.serve, name="demo-model", daemon=True)

    def serve(self) -> None:
        """Answer requests in this thread until `stop`."""
        self._server.serve_forever(poll_interval=0.05)

    def start(self) -> Self:
        """Answer requests in a thread of its own."""
        self._thread.start()
        return self

    def stop(self) -> None:
        """Release what is held and stop."""
        self.faults.release()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], faults: Faults) -> None:
        super().__init__(address, _Handler)
        self.faults = faults


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def handle(self) -> None:
        # A client that was killed in mid-request closes its end; that is what the holds are for.
        with suppress(ConnectionError):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server fixes the name
        """Say nothing: evidence tells what was asked."""

    def do_GET(self) -> None:
        target = urlsplit(self.path)
        if target.path == "/control":
            self._json(200, self.server.faults.state())
        elif target.path == "/control/held":
            query = {key: values[-1] for key, values in parse_qs(target.query).items()}
            held = self.server.faults.wait_held(int(query.get("count", 1)), float(query.get("timeout", 10)))
            self._json(200 if held else 408, self.server.faults.state())
        elif target.path == "/v1/models":
            self._json(200, {"object": "list", "data": [{"id": "demo-scripted", "object": "model"}]})
        else:
            self._error(404, f"no such path: {target.path}")

    def do_POST(self) -> None:
        text = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode("utf-8", "replace")
        routes: dict[str, Callable[[str, dict[str, Any]], None]] = {
            "/control": self._control,
            "/v1/chat/completions": self._complete,
        }
        route = routes.get(urlsplit(self.path).path)
        if route is None:
            self._error(404, f"no such path: {self.path}")
            return
        try:
            document = json.loads(text)
        except ValueError:
            document = None
        if not isinstance(document, dict):
            self._error(400, "the body is not a JSON object")
            return
        route(text, document)

    def _control(self, text: str, document: dict[str, Any]) -> None:
        if "hold" in document:
            self.server.faults.hold(str(document["hold"]))
        if "fault" in document:
            self.server.faults.add(Fault(**document["fault"]))
        if document.get("release"):
            self.server.faults.release()
        self._json(200, self.server.faults.state())

    def _complete(self, text: str, document: dict[str, Any]) -> None:
        kind, _, key = (self.headers.get("Authorization") or "").partition(" ")
        if kind.lower() != "bearer" or not key.strip():
            self._error(401, "send 'Authorization: Bearer KEY'; any key will do")
            return
        fault = self.server.faults.meet(text)
        if fault is not None:
            headers = {"Content-Type": "application/json", **fault.headers}
            self._send(fault.status, fault.body.encode(), headers)
        elif document.get("stream"):
            self._stream(chunks(document))
        else:
            self._json(200, completion(document))

    def _stream(self, events: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header(*LABEL_HEADER)
        self.end_headers()
        for event in events:
            self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
            self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _json(self, status: int, document: Mapping[str, Any]) -> None:
        self._send(status, json.dumps(document).encode(), {"Content-Type": "application/json"})

    def _error(self, status: int, message: str) -> None:
        self._json(status, {"error": {"message": message, "type": "demo_error", "code": status}})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header(*LABEL_HEADER)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description="Scripted stand-in for an OpenAI-compatible model server.")
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 picks a free one")
    port = parser.parse_args().port
    with suppress(KeyboardInterrupt):
        server = DemoModelServer(port)
        sys.stdout.write(f"{READY_LINE} {server.base_url}\n")
        sys.stdout.flush()
        server.serve()


if __name__ == "__main__":
    main()
