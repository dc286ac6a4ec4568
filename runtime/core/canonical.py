"""Canonical JSON: one text for one value, so that a hash can stand for it.

The form is RFC 8785 (JSON Canonicalization Scheme): keys sorted by UTF-16 code units, no whitespace,
numbers as ECMAScript writes them. Beyond the RFC, integers of any size keep all their digits and lone
surrogates are escaped, so that every JSON value that Python can hold has a canonical text.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any, Final, NoReturn

from runtime.core.model import Json
from runtime.errors import InvalidInput

# The rfc8785 package refuses lone surrogates and integers beyond 2**53, which tool inputs may hold.

MAX_DEPTH: Final = 256
"""Deepest nesting of lists and objects; fixed, so that refusal does not depend on the caller's stack."""

_SURROGATES: Final = re.compile("[\ud800-\udfff]")
_quote: Final = json.encoder.encode_basestring
_encode_plain: Final = json.JSONEncoder(
    ensure_ascii=False, check_circular=False, allow_nan=False, sort_keys=True, separators=(",", ":")
).encode


def canonical_json(value: Json) -> str:
    """Write a JSON value canonically.

    Args:
        value: Plain JSON; tuples count as lists.

    Returns:
        Text without lone surrogates, hence encodable as UTF-8.

    Raises:
        InvalidInput: For non-finite numbers, keys that are not strings, values that are not JSON,
            integers with more digits than Python converts (4300), nesting deeper than `MAX_DEPTH`.
    """
    try:
        # The C encoder agrees with the RFC on what `_is_plain` accepts and is several times faster.
        text = _encode_plain(value) if _is_plain(value, 0) else "".join(_write(value))
    except ValueError:
        raise InvalidInput("an integer has more than 4300 digits; pass it as a string") from None
    if text.isascii():
        return text
    if _SURROGATES.search(text) is None:
        return text
    # Two halves of a pair are one character to every reader of the text, so they are joined first.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _SURROGATES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def digest(value: Json) -> str:
    """SHA-256 of the canonical text in UTF-8, as lower-case hex.

    Raises:
        InvalidInput: As `canonical_json`.
    """
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def parse_json(text: str | bytes) -> Json:
    """Read JSON text strictly.

    Args:
        text: One JSON document; of duplicate keys the last wins.

    Raises:
        InvalidInput: For malformed text, ``NaN``, ``Infinity``, numbers too large to be finite, integers
            with more than 4300 digits, and nesting too deep to read.
    """
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise InvalidInput(f"the JSON text is nested too deeply; at most {MAX_DEPTH} levels") from None
    except ValueError as problem:
        raise InvalidInput(f"not valid JSON: {problem}") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(literal: str) -> float:
    number = float(literal)
    if not math.isfinite(number):
        raise ValueError(f"the number {literal} is out of range")
    return number


def _is_plain(value: Any, depth: int) -> bool:
    kind = type(value)
    if kind is str or kind is int or kind is bool or value is None:
        return True
    if depth >= MAX_DEPTH:
        return False
    if kind is dict:
        for key, item in value.items():
            if type(key) is not str or not key.isascii() or not _is_plain(item, depth + 1):
                return False
        return True
    if kind is list:
        return all(_is_plain(item, depth + 1) for item in value)
    return False


def _write(value: Any) -> list[str]:
    parts: list[str] = []
    _append(value, parts.append, 0)
    return parts


def _append(value: Any, emit: Any, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise InvalidInput(f"the value is nested deeper than {MAX_DEPTH} levels; flatten it")
    if value is None or isinstance(value, bool):
        emit({None: "null", True: "true", False: "false"}[value])
    elif isinstance(value, str):
        emit(_quote(value))
    elif isinstance(value, int):
        emit(int.__repr__(value))
    elif isinstance(value, float):
        emit(_number(value))
    elif isinstance(value, dict):
        _append_object(value, emit, depth)
    elif isinstance(value, (list, tuple)):
        for position, item in enumerate(value):
            emit("," if position else "[")
            _append(item, emit, depth + 1)
        emit("]" if value else "[]")
    else:
        raise InvalidInput(f"a value of type {type(value).__name__} is not JSON; convert it first")


def _append_object(value: dict[Any, Any], emit: Any, depth: int) -> None:
    for key in value:
        if not isinstance(key, str):
            raise InvalidInput(f"the object key {key!r} is not a string; JSON keys are strings")
    # RFC 8785, section 3.2.3: keys are compared as UTF-16 code units.
    keys = sorted(value, key=lambda key: key.encode("utf-16-be", "surrogatepass"))
    for position, key in enumerate(keys):
        emit("," if position else "{")
        emit(_quote(key))
        emit(":")
        _append(value[key], emit, depth + 1)
    emit("}" if value else "{}")


def _number(value: float) -> str:
    """A float as ECMAScript writes it (ECMA-262, Number::toString): same digits as Python, other layout."""
    if not math.isfinite(value):
        raise InvalidInput(f"the number {value} is not finite; JSON has no such number")
    if value == 0:
        return "0"
    sign = "-" if value < 0 else ""
    mantissa, _, exponent = float.__repr__(abs(value)).partition("e")
    whole, _, fraction = mantissa.partition(".")
    fraction = fraction.rstrip("0")
    digits = (whole + fraction).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + fraction) - len(digits))
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        padded = digits.ljust(point, "0")
        return sign + padded[:point] + ("." + padded[point:] if padded[point:] else "")
    if -6 < point <= 0:
        return sign + "0." + "0" * -point + digits
    tail = f"e{point - 1:+d}"
    return sign + digits[0] + ("." + digits[1:] if digits[1:] else "") + tail
