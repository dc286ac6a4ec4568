"""Which failures are worth another attempt, and when.

The rule for providers is 17 of the provider protocol notes: 408, 409, 429 and every 5xx (529 among them) may
be repeated; ``x-should-retry`` overrides; an exhausted quota never comes back by waiting.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from runtime.core.durations import milliseconds
from runtime.core.model import RetryPolicy

MAX_RETRY_AFTER_S = 300.0
"""Upper bound on the wait that a provider may ask for, in seconds."""

_RETRYABLE = frozenset({408, 409, 429})
_EXHAUSTED = frozenset({"insufficient_quota", "billing_hard_limit_reached"})


def next_delay(
    policy: RetryPolicy,
    *,
    attempt: int,
    code: str,
    retryable: bool,
    elapsed_ms: int,
    chance: float,
    asked_s: float | None = None,
) -> int | None:
    """When to make the next attempt.

    Args:
        policy: How often, and after which delays.
        attempt: Number of the attempt that failed, from 1.
        code: Its error code.
        retryable: What the failure says of itself, where the policy names no codes.
        elapsed_ms: Since the first attempt started.
        chance: A random number from 0 to 1.
        asked_s: The wait that the other side asked for; it takes the place of the policy's delay.

    Returns:
        The delay in milliseconds, or ``None`` when there is no further attempt.
    """
    worth = retryable if policy.retry_on is None else code in policy.retry_on
    if not worth or attempt >= policy.attempts:
        return None
    if asked_s is not None:
        delay = asked_s * 1000
    else:
        grown = milliseconds(policy.first_delay) * 2.0 ** (attempt - 1)
        delay = min(grown, milliseconds(policy.longest_delay)) * (1 - policy.jitter * chance)
    if policy.within is not None and elapsed_ms + delay > milliseconds(policy.within):
        return None
    return round(delay)


@dataclass(frozen=True)
class RetryVerdict:
    """Whether an attempt may be repeated, and the wait the provider asked for in seconds, if any."""

    retryable: bool
    retry_after_s: float | None = None


def classify_response(
    status: int, headers: Mapping[str, str], *, now: datetime, provider_codes: tuple[str, ...] = ()
) -> RetryVerdict:
    """Classify a response that is not a success.

    Args:
        status: The HTTP status.
        headers: Response headers, with lower-case names or a case-insensitive mapping.
        now: The time that an HTTP date in ``retry-after`` is compared with (aware).
        provider_codes: ``error.code`` and ``error.type`` of the body, where they are strings.
    """
    retryable = status in _RETRYABLE or status >= 500
    wish = headers.get("x-should-retry", "").strip().lower()
    if wish in {"true", "false"}:
        retryable = wish == "true"
    if _EXHAUSTED.intersection(provider_codes):
        retryable = False
    return RetryVerdict(retryable, retry_after(headers, now=now) if retryable else None)


def retry_after(headers: Mapping[str, str], *, now: datetime) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``retry-after`` (seconds or an HTTP date, RFC 9110 10.2.3).

    Returns:
        A value between 0 and `MAX_RETRY_AFTER_S`, or ``None`` when no header can be read.
    """
    seconds = _number(headers.get("retry-after-ms"))
    if seconds is not None:
        return _capped(seconds / 1000)
    text = headers.get("retry-after")
    seconds = _number(text)
    if seconds is not None:
        return _capped(seconds)
    return _until(text, now)


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _until(text: str | None, now: datetime) -> float | None:
    try:
        due = parsedate_to_datetime(text) if text is not None else None
    except (ValueError, OverflowError):
        return None
    if due is None:
        return None
    aware = due if due.tzinfo is not None else due.replace(tzinfo=UTC)
    return _capped((aware - now).total_seconds())


def _capped(seconds: float) -> float:
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S)
