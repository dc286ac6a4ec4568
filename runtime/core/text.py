"""Text from outside, made fit for a database column, a log line and a screen."""

from __future__ import annotations

import unicodedata

from runtime.errors import InvalidInput

MAX_NAME = 200

_UNFIT = frozenset({"Cc", "Cs"})
"""Categories of Unicode (its standard, section 4.5) that no name may have: controls and lone surrogates.

PostgreSQL refuses NUL in text, and UTF-8 has no form for a surrogate.
"""


def is_name(value: object, *, most: int = MAX_NAME) -> bool:
    r"""Whether something can name a thing, on every database alike.

    Args:
        value: Anything, as it came from outside.
        most: Characters that it may have at most.

    >>> is_name("a b"), is_name("a\x00b"), is_name(""), is_name(7)
    (True, False, False, False)
    """
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        return False
    return value.isprintable() or not any(unicodedata.category(each) in _UNFIT for each in value)


def check_name(field: str, value: object, *, most: int = MAX_NAME) -> None:
    """Refuse a name that could not be stored or shown.

    Args:
        field: What the caller knows the value by.
        value: What was given.
        most: Characters that it may have at most.

    Raises:
        InvalidInput: Unless it is text of 1 to ``most`` characters without control characters or surrogates.
    """
    if not is_name(value, most=most):
        shown = repr(value[:40]) if isinstance(value, str) else f"of type {type(value).__name__}"
        raise InvalidInput(
            f"{field} {shown} cannot be used; give 1-{most} characters without control characters "
            "or lone surrogates"
        )


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
