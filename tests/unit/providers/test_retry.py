"""Rule 17: which answers may be repeated, and when."""

from datetime import UTC, datetime

import httpx
import pytest

from runtime.core.retry import MAX_RETRY_AFTER_S, RetryVerdict, classify_response

NOW = datetime(2030, 1, 1, 12, 0, 0, tzinfo=UTC)


def classify(status, codes=(), **headers):
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return classify_response(status, httpx.Headers(named), now=NOW, provider_codes=codes)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 504, 529])
def test_rule_17_transient_statuses_are_retryable(status):
    assert classify(status) == RetryVerdict(True)


@pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 413, 422])
def test_rule_17_other_statuses_are_not(status):
    assert classify(status) == RetryVerdict(False)


def test_rule_17_x_should_retry_overrides():
    assert classify(400, x_should_retry="true").retryable
    assert not classify(500, x_should_retry="False").retryable


def test_rule_17_an_exhausted_quota_is_not_retryable_whatever_the_headers_say():
    assert not classify(429, ("insufficient_quota",), x_should_retry="true", retry_after="1").retryable


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry_after_ms": "1500", "retry_after": "9"}, 1.5),
        ({"retry_after": "2.5"}, 2.5),
        ({"retry_after": "Tue, 01 Jan 2030 12:00:30 GMT"}, 30.0),
        ({"retry_after": "Tue, 01 Jan 2030 11:00:00 GMT"}, 0.0),
        ({"retry_after": "-5"}, 0.0),
        ({"retry_after": "86400"}, MAX_RETRY_AFTER_S),
        ({"retry_after": "nan"}, None),
        ({"retry_after": "soon"}, None),
        ({}, None),
    ],
)
def test_rule_17_the_wait_is_read_and_capped(headers, seconds):
    assert classify(429, **headers).retry_after_s == seconds
