"""Tells the webhook of approval requests: rows are left with what happened, and sent beside the sweep.

What is posted names ids, never an input or an output. It is signed, ``Agent-Runtime-Signature:
t=<seconds since the epoch>,v1=<hex>``, where ``v1`` is HMAC-SHA256 under the webhook's secret over
``<t>.<body>``. ``Idempotency-Key`` is the same each time that one thing is told: a receiver may see it twice.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import threading
import time

import httpx

from runtime.engine.parts import Parts
from runtime.store.approvals import Approval
from runtime.store.notifications import (
    Notification,
    add_notification,
    claim_due,
    note_delivered,
    note_failure,
)
from runtime.store.write import Change
from runtime.workspace_model import Webhook

logger = logging.getLogger(__name__)

BATCH = 20
TIMEOUT_S = 5.0

_sending = threading.Lock()
"""Held while this process sends: one batch at a time, however often the sweep comes by."""


def notify(
    parts: Parts,
    change: Change,
    event: str,
    approval: Approval,
    now: int,
    *,
    status: str,
    by: str | None = None,
) -> None:
    """Have a change leave word of what becomes of a request, if there is a webhook."""
    announce(
        parts,
        change,
        event,
        now,
        request_id=approval.request_id,
        kind=approval.kind,
        session_id=approval.session_id,
        node_id=approval.node_id,
        tool_name=approval.tool_name,
        expires_at=approval.expires_at,
        status=status,
        by=by,
    )


def announce(
    parts: Parts, change: Change, event: str, now: int, *, request_id: str, **said: str | int | None
) -> None:
    """Have a change leave word of a request, if there is a webhook."""
    if parts.host.workspace.approvals.webhook is None:
        return
    body = {"event": event, "request_id": request_id, "at": now, **said}
    add_notification(change, event, f"{request_id}.{event}", body, now)


def sign(secret: str, timestamp: int, body: str) -> str:
    """The value of the signature header.

    Args:
        secret: What sender and receiver share.
        timestamp: Seconds since the epoch; a receiver refuses old ones.
        body: What is posted.
    """
    mac = hmac.new(secret.encode(), f"{timestamp}.{body}".encode(), hashlib.sha256)
    return f"t={timestamp},v1={mac.hexdigest()}"


def send_beside(parts: Parts) -> None:
    """Send what is due on a thread of its own, unless this process is sending; nothing waits for it."""
    if parts.host.workspace.approvals.webhook is None or not _sending.acquire(blocking=False):
        return

    def run() -> None:
        try:
            send_due(parts)
        except Exception:  # what was claimed is due again later
            logger.exception("the webhook could not be told; it is tried again later")
        finally:
            _sending.release()

    threading.Thread(target=run, name="approvals-webhook", daemon=True).start()


def send_due(parts: Parts) -> int:
    """Send what is due, a batch at most; how many were delivered."""
    webhook = parts.host.workspace.approvals.webhook
    if webhook is None:
        return 0
    claimed = claim_due(parts.database, BATCH)
    if not claimed:
        return 0
    with httpx.Client(timeout=TIMEOUT_S, follow_redirects=False, trust_env=False) as client:
        return sum(_send(parts, client, webhook, each) for each in claimed)


def _send(parts: Parts, client: httpx.Client, webhook: Webhook, each: Notification) -> bool:
    error = _failure(parts, client, webhook, each)
    if error is None:
        note_delivered(parts.database, each.id)
        return True
    logger.warning("the webhook was not told of %s (attempt %d): %s", each.id, each.attempts, error)
    note_failure(parts.database, each.id, error)
    return False


def _failure(parts: Parts, client: httpx.Client, webhook: Webhook, each: Notification) -> str | None:
    """Post one notification; why it failed, if it did."""
    secret = parts.environ.get(webhook.secret_env)
    if not secret:
        return f"the environment variable {webhook.secret_env} is not set, so nothing can be signed"
    timestamp = int(time.time())
    try:
        answer = client.post(
            webhook.url,
            content=each.body.encode(),
            headers={
                "Content-Type": "application/json",
                "Idempotency-Key": each.id,
                "Agent-Runtime-Event": each.event,
                "Agent-Runtime-Signature": sign(secret, timestamp, each.body),
            },
        )
    except httpx.HTTPError as error:
        return type(error).__name__
    return None if answer.is_success else f"it answered {answer.status_code}"
