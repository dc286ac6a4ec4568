"""A provider on loopback that answers with exact bytes, in exact chunks, when a test says so."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field


class Hangup(Exception):
    """The client went away."""


@dataclass
class Connection:
    """One connection: scripts read the request and write the answer."""

    socket: socket.socket
    buffer: bytes = b""

    def request(self) -> tuple[bytes, bytes]:
        while b"\r\n\r\n" not in self.buffer:
            self._more()
        head, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
        lines = [line.lower() for line in head.split(b"\r\n")]
        size = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length:"))
        while len(self.buffer) < size:
            self._more()
        body, self.buffer = self.buffer[:size], self.buffer[size:]
        return head, body

    def _more(self) -> None:
        try:
            received = self.socket.recv(65536)
        except OSError:
            received = b""
        if not received:
            raise Hangup
        self.buffer += received

    def send(self, data: bytes) -> None:
        try:
            self.socket.sendall(data)
        except OSError:
            raise Hangup from None

    def head(self, status: str = "200 OK", content_type: str = "application/json", **headers: str) -> None:
        lines = [f"HTTP/1.1 {status}", f"content-type: {content_type}", "transfer-encoding: chunked"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.send("\r\n".join([*lines, "", ""]).encode())

    def chunk(self, data: bytes) -> None:
        if data:
            self.send(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def end(self) -> None:
        self.send(b"0\r\n\r\n")

    def until_gone(self) -> None:
        """Wait until the client closes."""
        while True:
            self._more()

    def reset(self) -> None:
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()
        raise Hangup


@dataclass
class Server:
    """Counts connections and requests; ``gone`` is set when a client hangs up."""

    url: str
    connections: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    gone: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serving(script: Callable[[Connection], None]) -> Iterator[Server]:
    """Run a script for each request, on as many connections as clients open."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = Server(f"http://127.0.0.1:{listener.getsockname()[1]}/v1")
    threads: list[threading.Thread] = []
    opened: list[socket.socket] = []

    def serve(connected: socket.socket) -> None:
        connection = Connection(connected)
        with connected:
            try:
                while True:
                    server.requests.append(connection.request())
                    script(connection)
            except Hangup:
                server.gone.set()

    def accept() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            server.connections += 1
            opened.append(connected)
            threads.append(threading.Thread(target=serve, args=(connected,)))
            threads[-1].start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join()
        for connected in opened:
            with suppress(OSError):
                connected.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join()
