"""Checks that a Celery application can carry the runtime; its settings stay as they are."""

from __future__ import annotations

from typing import Any

from celery import Celery

from runtime.errors import ConfigurationError
from runtime.settings import redact_url

_JSON = frozenset({"json", "application/json"})


def check_application(app: Celery) -> None:
    """See that an application's broker is Redis and that its workers accept JSON.

    Raises:
        ConfigurationError: Naming the setting, its value and the fix.
    """
    url = _broker_url(app)
    if not _is_redis(app):
        raise ConfigurationError(
            f"the broker of Celery application {app.main!r} is {redact_url(url) if url else 'not set'}; "
            "the runtime needs Redis or Valkey: set broker_url to redis://…, before register() and open(), "
            "or give the runtime a Celery application of its own"
        )
    accepted = list(app.conf.accept_content or ())
    if not _JSON.intersection(accepted):
        raise ConfigurationError(
            f"Celery application {app.main!r} accepts {', '.join(map(str, accepted)) or 'nothing'}; "
            "the runtime's messages are JSON: add 'json' to accept_content"
        )


def _broker_url(app: Celery) -> str:
    given: Any = app.conf.broker_write_url or app.conf.broker_url or ""
    return str(given[0] if isinstance(given, list | tuple) and given else given).split(";")[0]


def _is_redis(app: Celery) -> bool:
    """Whether kombu would speak to the broker as to Redis; no connection is made."""
    try:
        return bool(app.connection_for_write().get_transport_cls().driver_type == "redis")
    except (ImportError, KeyError, AttributeError):  # kombu does not know the scheme, or lacks its library
        return False
