"""Text from outside, made fit for a database column, a log line and a screen."""

from __future__ import annotations

MAX_NAME = 200


def storable(text: str) -> str:
    r"""A name as it is, if it can be stored and shown; else escaped and cut.

    Models write NUL, control characters and lone surrogates into names; no registered name has any, so
    an escaped one matches nothing.

    >>> storable("a\x00b")
    'a\\x00b'
    """
    if len(text) <= MAX_NAME and text.isprintable():
        return text
    escaped = text[:MAX_NAME].encode("unicode_escape", "surrogatepass").decode("ascii")
    return escaped[:MAX_NAME]
