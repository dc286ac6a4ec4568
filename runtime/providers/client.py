"""The HTTP client of model calls: one attempt per call, bounded in time and size, no redirects.

Another attempt is a row with a due time, which is the engine's business: errors say whether and when.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx

from runtime.core.profile import ResolvedProfile
from runtime.core.retry import classify_response
from runtime.core.turn import ProviderRequest, compact_json
from runtime.core.turn_output import Exchange, Snapshot, TurnOutput
from runtime.errors import ErrorCode
from runtime.providers.bodies import parse_object
from runtime.providers.chat_completions import ChatCompletions
from runtime.providers.errors import ProviderError, malformed, provider_codes, quoted
from runtime.providers.events import iter_events
from runtime.providers.meaning import native_output, prompt_output
from runtime.providers.messages import Messages
from runtime.providers.reply import ModelReply, StreamReader
from runtime.providers.transport import Bounds, CallCancelled, DeadlinePassed, bounded, bounded_transport
from runtime.providers.wire import NativeTables, Wire

MAX_BODY_BYTES = 32 * 1024 * 1024
"""Largest answer that is read, in bytes after decompression."""

LINGER_SECONDS = 0.25
"""How long a finished stream is read on for the end of its body."""

MAX_CONNECTIONS = 200
_MAX_ERROR_BYTES = 256 * 1024
_WIRES: Mapping[str, Wire] = {"openai_compatible": ChatCompletions(), "messages_compatible": Messages()}
_CODES = {401: ErrorCode.PROVIDER_AUTHENTICATION_FAILED, 429: ErrorCode.PROVIDER_RATE_LIMITED}


class ProviderClient:
    """Calls model providers; safe to share among threads.

    The connection pool is made on first use in each process, so that a fork never shares a socket.

    Args:
        transport: Replaces the network, for tests.
    """

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = transport
        self._clients: dict[int, httpx.Client] = {}

    def execute(
        self,
        resolved: ResolvedProfile,
        request: ProviderRequest,
        *,
        on_snapshot: Callable[[Snapshot], None] | None = None,
        deadline_s: float | None = None,
        cancelled: Callable[[], bool] | None = None,
    ) -> TurnOutput:
        """Make one model call and normalise its answer.

        Args:
            resolved: Where to call, and with which key.
            request: What to send.
            on_snapshot: Called in this thread with each state of a streamed answer, the final one included.
            deadline_s: Seconds from now after which the call ends; the profile's total bound applies as well.
            cancelled: Asked a few times a second while the call waits.

        Raises:
            ProviderError: With a ``PROVIDER_*`` code; ``retryable`` says what may follow.
        """
        wire = _WIRES.get(resolved.profile.provider)
        if wire is None:
            known = ", ".join(_WIRES)
            raise ProviderError(
                ErrorCode.PROVIDER_UNSUPPORTED,
                f"there is no provider kind {resolved.profile.provider!r}; use one of {known}",
            )
        total = resolved.profile.timeouts.total
        seconds = total if deadline_s is None else min(total, deadline_s)
        bounds = Bounds(time.monotonic() + seconds, cancelled)
        call = _Call(self._client(), wire, resolved, request, on_snapshot or (lambda snapshot: None))
        with bounded(bounds):
            return call.run(bounds)

    def close(self) -> None:
        """Close the connections that this process opened; a later call opens new ones."""
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _client(self) -> httpx.Client:
        # One entry per process: what a parent opened stays in its own entry, unused here.
        client = self._clients.get(os.getpid())
        if client is None:
            made = httpx.Client(
                transport=self._transport or bounded_transport(MAX_CONNECTIONS),
                follow_redirects=False,
                trust_env=False,
            )
            client = self._clients.setdefault(os.getpid(), made)
        return client


class _Call:
    """One attempt: send, read, normalise; every failure becomes a `ProviderError` without the key."""

    def __init__(
        self,
        client: httpx.Client,
        wire: Wire,
        resolved: ResolvedProfile,
        request: ProviderRequest,
        on_snapshot: Callable[[Snapshot], None],
    ) -> None:
        self._client = client
        self._wire = wire
        self._resolved = resolved
        self._profile = resolved.profile
        self._request = request
        self._on_snapshot = on_snapshot
        self._table = NativeTables(request)
        self._sequence = 0
        self._exchange = Exchange(
            resolved.request_url,
            resolved.endpoint_url,
            "streaming" if request.stream else "non_streaming",
        )

    def run(self, bounds: Bounds) -> TurnOutput:
        """Make the attempt.

        Raises:
            ProviderError: On any failure.
        """
        try:
            output = self._exchange_messages(bounds)
        except ProviderError as error:
            raise self._finished(error) from None
        except httpx.TimeoutException as error:
            raise self._no_answer(f"timed out ({type(error).__name__})", reason="timeout") from None
        except DeadlinePassed:
            raise self._no_answer("the deadline passed", reason="deadline") from None
        except CallCancelled:
            raise self._no_answer("the call was cancelled", reason="cancelled", retryable=False) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError) as error:
            # The cause is cut off: its traceback would hold the request with the key.
            raise self._no_answer(str(error) or type(error).__name__) from None
        return replace(output, exchange=self._exchange)

    def _exchange_messages(self, bounds: Bounds) -> TurnOutput:
        bounds.check()
        with self._client.stream(
            "POST",
            self._resolved.endpoint_url,
            content=compact_json(self._wire.body(self._profile, self._request, self._table)),
            headers=self._headers(),
            timeout=self._timeout(),
        ) as response:
            self._exchange = replace(self._exchange, response_status=response.status_code)
            if not response.is_success:
                raise self._refused(response)
            if "text/event-stream" in response.headers.get("content-type", "").lower():
                return self._read_stream(response, bounds)
            return self._read_whole(response, bounds)

    def _headers(self) -> dict[str, str]:
        fixed = {
            "content-type": "application/json",
            "accept": "text/event-stream, application/json" if self._request.stream else "application/json",
            # An identity body cannot be a decompression bomb, and a stream is not held back by a compressor.
            "accept-encoding": "identity",
            **self._wire.headers(self._profile, self._resolved.api_key.get_secret_value()),
        }
        extra = {name.lower(): value for name, value in self._profile.headers.items()}
        return {**extra, **fixed}

    def _timeout(self) -> httpx.Timeout:
        bounds = self._profile.timeouts
        return httpx.Timeout(bounds.read, connect=bounds.connect, pool=bounds.connect)

    # --- answers ----------------------------------------------------------------------------------

    def _read_whole(self, response: httpx.Response, bounds: Bounds) -> TurnOutput:
        body = parse_object(b"".join(_capped(response, bounds)))
        if body is None:
            raise malformed("the answer is not a JSON object")
        return self._normalised(self._wire.decode(body, self._profile))

    def _read_stream(self, response: httpx.Response, bounds: Bounds) -> TurnOutput:
        reader = self._wire.reader(self._profile)
        try:
            for event in iter_events(_capped(response, bounds)):
                model = reader.model
                if reader.feed(event):
                    self._partial(reader, model)
                if reader.ended:
                    # Nothing more is meant; a body that ends now leaves its connection for the next call.
                    bounds.hurry(LINGER_SECONDS)
        except (httpx.HTTPError, OSError, DeadlinePassed):
            if not reader.ended:
                raise
        output = self._normalised(reader.finish())
        self._emit(Snapshot(self._sequence, "final", output.to_json()))
        return output

    def _partial(self, reader: StreamReader, model: str | None) -> None:
        provider = {"kind": self._profile.provider, "model": model or self._profile.model}
        data: dict[str, Any] = {"assistant_message": reader.text, "provider": provider}
        self._emit(Snapshot(self._sequence, "partial", data))

    def _emit(self, snapshot: Snapshot) -> None:
        self._sequence += 1
        self._on_snapshot(snapshot)

    def _normalised(self, reply: ModelReply) -> TurnOutput:
        kind, model = self._profile.provider, self._profile.model
        if self._profile.tool_mode == "prompt":
            return prompt_output(reply, kind=kind, model=model)
        return native_output(
            reply, kind=kind, model=model, names=self._table.names, intent_fields=self._table.intent_fields
        )

    # --- failures ---------------------------------------------------------------------------------

    def _refused(self, response: httpx.Response) -> ProviderError:
        body = parse_object(_error_body(response))
        verdict = classify_response(
            response.status_code, response.headers, now=datetime.now(UTC), provider_codes=provider_codes(body)
        )
        said = _quoted_object(body)
        details = {**self._details(), "response_status": response.status_code, **said}
        return ProviderError(
            _CODES.get(response.status_code, ErrorCode.PROVIDER_HTTP_ERROR),
            f"the provider answered with HTTP status {response.status_code}"
            + (f": {said['provider_message']}" if "provider_message" in said else ""),
            details=details,
            retryable=verdict.retryable,
            retry_after_s=verdict.retry_after_s,
        )

    def _no_answer(self, why: str, *, reason: str | None = None, retryable: bool = True) -> ProviderError:
        return self._finished(
            ProviderError(
                ErrorCode.PROVIDER_TRANSPORT_ERROR,
                f"no answer from {self._resolved.network_allowlist[0]}: {why}",
                details={**self._details(), **({"reason": reason} if reason else {})},
                retryable=retryable,
            )
        )

    def _finished(self, error: ProviderError) -> ProviderError:
        """The error with the facts of the exchange, and without the key, which a provider may quote back."""
        error.args = tuple(self._without_key(str(part)) for part in error.args)
        error.details = {
            name: self._without_key(value) if isinstance(value, str) else value
            for name, value in error.details.items()
        }
        error.exchange = self._exchange
        return error

    def _details(self) -> dict[str, Any]:
        return {"provider_kind": self._profile.provider, "request_url": self._resolved.request_url}

    def _without_key(self, text: str) -> str:
        return text.replace(self._resolved.api_key.get_secret_value(), "[key]")


def _capped(response: httpx.Response, bounds: Bounds) -> Iterator[bytes]:
    """The body as it arrives, up to `MAX_BODY_BYTES`."""
    size = 0
    for chunk in response.iter_bytes():
        bounds.check()
        size += len(chunk)
        if size > MAX_BODY_BYTES:
            raise malformed(f"the answer is larger than {MAX_BODY_BYTES} bytes")
        yield chunk


def _error_body(response: httpx.Response) -> bytes:
    """As much of an error's body as arrives and is worth reading; only the status must be had."""
    body = b""
    try:
        for chunk in response.iter_bytes():
            body += chunk
            if len(body) > _MAX_ERROR_BYTES:
                break
    except (httpx.HTTPError, OSError, DeadlinePassed):
        return body
    return body


def _quoted_object(body: dict[str, Any] | None) -> dict[str, str]:
    """What an HTTP error's body says; a bare string under ``error`` is not quoted, as in the reference."""
    return quoted(body) if isinstance((body or {}).get("error"), dict) else {}
