"""Takes secrets out of texts that tools write: error messages and log lines."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from runtime.core.model import Json

_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASS|CREDENTIAL|AUTH|DSN|_URL$|_URI$", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*:[^\s@]*(?=@)")
_SHORTEST = 6
"""Shorter values are words such as ``true``; replacing those would only spoil the text."""

MAX_CHARACTERS = 4000


def redact(text: str, environ: Mapping[str, str] | None = None) -> str:
    """Replace secret-looking variables' values and credentials in URLs by ``***``; bound the length."""
    text = _CREDENTIALS.sub("***", text)
    secrets = {
        value
        for name, value in (os.environ if environ is None else environ).items()
        if len(value) >= _SHORTEST and _SECRET_NAME.search(name)
    }
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text if len(text) <= MAX_CHARACTERS else text[:MAX_CHARACTERS] + " …"


def redact_json(value: Json) -> Json:
    """`redact` on every text of a JSON value."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list | tuple):
        return [redact_json(item) for item in value]
    if isinstance(value, dict):
        return {key: redact_json(item) for key, item in value.items()}
    return value
