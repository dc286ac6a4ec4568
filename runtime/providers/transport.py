"""A connection pool whose waits end: by the call's own deadline, or when the call is cancelled.

httpx bounds each read, not the whole call, and a server that trickles can hold a thread for ever. Here each
wait on a socket is cut into slices; between them the deadline and the cancellation of the call that this
thread makes are looked at. Proxy variables of the environment are not read: the address that the scopes allow
is the address that is connected.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

SLICE_S = 0.25
"""Longest wait before a cancellation is noticed, in seconds."""


class CallCancelled(Exception):
    """The call in progress was cancelled; the client turns this into a `ProviderError`."""


class DeadlinePassed(Exception):
    """The call in progress reached its deadline; the client turns this into a `ProviderError`."""


class Bounds:
    """The deadline (by `time.monotonic`) and the cancellation of one call."""

    def __init__(self, deadline: float, cancelled: Callable[[], bool] | None) -> None:
        self._deadline = deadline
        self._cancelled = cancelled

    def hurry(self, seconds: float) -> None:
        """Bring the deadline forward to so many seconds from now, unless it is nearer."""
        self._deadline = min(self._deadline, time.monotonic() + seconds)

    def check(self) -> float:
        """Seconds left.

        Raises:
            DeadlinePassed: If none are left.
            CallCancelled: If the call was cancelled.
        """
        if self._cancelled is not None and self._cancelled():
            raise CallCancelled
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise DeadlinePassed
        return left


_BOUNDS: ContextVar[Bounds | None] = ContextVar("provider_call_bounds", default=None)


@contextmanager
def bounded(bounds: Bounds) -> Iterator[None]:
    """Apply bounds to what this thread does on the network."""
    token = _BOUNDS.set(bounds)
    try:
        yield
    finally:
        _BOUNDS.reset(token)


class _BoundedStream(httpcore.NetworkStream):
    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        bounds = _BOUNDS.get()
        if bounds is None:
            return self._stream.read(max_bytes, timeout)
        end = time.monotonic() + timeout if timeout is not None else float("inf")
        while True:
            left = min(bounds.check(), end - time.monotonic())
            try:
                return self._stream.read(max_bytes, max(min(left, SLICE_S), 0.001))
            except httpcore.ReadTimeout:
                if time.monotonic() >= end:
                    raise

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _shorter(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _BoundedStream(self._stream.start_tls(ssl_context, server_hostname, _shorter(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


class _BoundedBackend(httpcore.SyncBackend):
    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _BoundedStream(
            super().connect_tcp(host, port, _shorter(timeout), local_address, socket_options)
        )


def _shorter(timeout: float | None) -> float | None:
    bounds = _BOUNDS.get()
    if bounds is None:
        return timeout
    left = bounds.check()
    return left if timeout is None else min(left, timeout)


def bounded_transport(max_connections: int) -> httpx.HTTPTransport:
    """A pool of HTTP/1.1 connections whose waits obey `bounded`."""
    context = httpx.create_ssl_context()
    transport = httpx.HTTPTransport(verify=context, trust_env=False)
    # httpx has no argument for the network backend of its pool; httpcore, which it wraps, has.
    transport._pool = httpcore.ConnectionPool(
        ssl_context=context,
        max_connections=max_connections,
        max_keepalive_connections=max_connections,
        keepalive_expiry=30.0,
        network_backend=_BoundedBackend(),
    )
    return transport
