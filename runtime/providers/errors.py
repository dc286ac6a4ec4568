"""The error that a failed model call raises, and how provider words map to codes."""

from __future__ import annotations

from typing import Any

from runtime.core.model import Json
from runtime.core.turn import trimmed
from runtime.core.turn_output import Exchange
from runtime.errors import AgentRuntimeError, ErrorCode

_MAX_QUOTE = 2000


class ProviderError(AgentRuntimeError):
    """A model call failed; nothing of its answer may be used.

    Attributes:
        code: One of the ``PROVIDER_*`` codes.
        retryable: Whether the same request may be sent again.
        retry_after_s: Seconds that the provider asked to wait, if it did.
        exchange: Facts about the HTTP exchange, filled in by the client.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        details: dict[str, Any] | None = None,
        retryable: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, code=code, details=details)
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.exchange: Exchange | None = None


def malformed(message: str, *, retryable: bool = False) -> ProviderError:
    """The provider answered, but not in the protocol's form."""
    return ProviderError(ErrorCode.PROVIDER_MALFORMED_RESPONSE, message, retryable=retryable)


_REPORTED = {
    "authentication_error": (ErrorCode.PROVIDER_AUTHENTICATION_FAILED, False),
    "invalid_api_key": (ErrorCode.PROVIDER_AUTHENTICATION_FAILED, False),
    "permission_error": (ErrorCode.PROVIDER_HTTP_ERROR, False),
    "invalid_request_error": (ErrorCode.PROVIDER_HTTP_ERROR, False),
    "not_found_error": (ErrorCode.PROVIDER_HTTP_ERROR, False),
    "request_too_large": (ErrorCode.PROVIDER_HTTP_ERROR, False),
    "insufficient_quota": (ErrorCode.PROVIDER_RATE_LIMITED, False),
    "rate_limit_error": (ErrorCode.PROVIDER_RATE_LIMITED, True),
    "rate_limit_exceeded": (ErrorCode.PROVIDER_RATE_LIMITED, True),
}


def reported(body: Json) -> ProviderError:
    """An error that the provider reports under HTTP 200: in a stream, or as a whole body.

    Args:
        body: An object with ``error``, which may be an object or a bare string.
    """
    words = provider_codes(body)
    code, retryable = next(
        (_REPORTED[word] for word in words if word in _REPORTED), (ErrorCode.PROVIDER_HTTP_ERROR, True)
    )
    details = quoted(body)
    said = details.get("provider_message") or (words[0] if words else "no reason given")
    return ProviderError(
        code, f"the provider reported an error in its answer: {said}", details=details, retryable=retryable
    )


def quoted(body: Json) -> dict[str, str]:
    """``provider_code`` and ``provider_message`` of an error body, where they are non-blank strings."""
    error = body.get("error") if isinstance(body, dict) else None
    found = error if isinstance(error, dict) else {"message": error}
    details: dict[str, str] = {}
    for name in ("code", "message"):
        value = found.get(name)
        if isinstance(value, str) and trimmed(value):
            details[f"provider_{name}"] = trimmed(value)[:_MAX_QUOTE]
    return details


def provider_codes(body: Json) -> tuple[str, ...]:
    """``error.code`` and ``error.type`` of an error body, where they are strings."""
    error = body.get("error") if isinstance(body, dict) else None
    found = (error.get("code"), error.get("type")) if isinstance(error, dict) else ()
    return tuple(word for word in found if isinstance(word, str) and word)
