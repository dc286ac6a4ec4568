"""Canonical JSON: one text per value, refusals instead of surprises."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core.canonical import MAX_DEPTH, canonical_json, digest, parse_json
from runtime.errors import InvalidInput

numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(st.characters(exclude_categories=()), max_size=6)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=12,
)


def shape(value):
    """The value as JSON knows it: numbers without their Python type, booleans apart."""
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return repr(value)
    if isinstance(value, dict):
        return ("object", {key: shape(item) for key, item in value.items()})
    if isinstance(value, list):
        return [shape(item) for item in value]
    return ("number", value)


@settings(max_examples=100, deadline=None)
@given(value=values)
def test_canonical_text_is_a_fixed_point(value):
    text = canonical_json(value)
    assert canonical_json(parse_json(text)) == text
    assert digest(parse_json(text)) == digest(value)


@settings(max_examples=100, deadline=None)
@given(left=values, right=values)
def test_different_values_have_different_texts(left, right):
    if canonical_json(left) == canonical_json(right):
        assert json.loads(canonical_json(left)) == json.loads(canonical_json(right))
    elif shape(left) == shape(right):
        assert any(abs(number) >= 2**53 for number in numbers_in(left)), "equal values, different texts"


def numbers_in(value):
    if isinstance(value, dict):
        return [number for item in value.values() for number in numbers_in(item)]
    if isinstance(value, list):
        return [number for item in value for number in numbers_in(item)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


@settings(max_examples=200, deadline=None)
@given(number=st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_survives_the_text(number):
    assert float(canonical_json(number)) == number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (-0.0, "0"),
        (1e21, "1e+21"),
        (1e20, "100000000000000000000"),
        (1e-6, "0.000001"),
        (1e-7, "1e-7"),
        (1.5e-9, "1.5e-9"),
        (123.456, "123.456"),
        (5e-324, "5e-324"),
        (1.7976931348623157e308, "1.7976931348623157e+308"),
        (2**64, "18446744073709551616"),
        ((1, 2), "[1,2]"),
        ({"b": 1, "a": []}, '{"a":[],"b":1}'),
        ('\b\f\n\r\t\x1f"\\/\x7f', '"\\b\\f\\n\\r\\t\\u001f\\"\\\\/\x7f"'),
        ("\ud800", '"\\ud800"'),
        ("\ud83d\ude00", '"😀"'),
    ],
)
def test_values_are_written_as_the_rfc_says(value, text):
    assert canonical_json(value) == text


def test_keys_are_ordered_by_utf16_code_units():
    """RFC 8785, section 3.2.3: an astral key comes before U+E000."""
    assert canonical_json({"\ue000": 1, "😀": 2}) == '{"😀":2,"\ue000":1}'


def test_an_integral_float_and_its_integer_are_one_value():
    assert digest({"a": 1}) == digest({"a": 1.0})
    assert digest(1) != digest(True)
    assert digest(1) != digest("1")


@pytest.mark.parametrize(
    "value", [math.nan, math.inf, {"a": [-math.inf]}, {1: 2}, {None: 1}, {"a": {1}}, b"x", object()]
)
def test_what_is_not_json_is_refused(value):
    with pytest.raises(InvalidInput):
        canonical_json(value)


def test_integers_keep_all_their_digits_up_to_a_named_bound():
    assert canonical_json([10**4000, 0.5]) == f"[{10**4000},0.5]"
    with pytest.raises(InvalidInput, match="4300 digits"):
        canonical_json(10**5000)


@pytest.mark.parametrize("leaf", [1, 0.5])
def test_nesting_is_refused_at_a_fixed_depth(leaf):
    deepest = leaf
    for _ in range(MAX_DEPTH):
        deepest = [deepest]
    assert canonical_json(deepest).startswith("[[[")
    with pytest.raises(InvalidInput, match="deeper than"):
        canonical_json({"a": deepest})


def test_a_value_that_holds_itself_is_refused():
    loop = []
    loop.append(loop)
    with pytest.raises(InvalidInput, match="deeper than"):
        canonical_json(loop)


@pytest.mark.parametrize(
    "text", ["NaN", "[Infinity]", "-Infinity", "1e999", "{", "", "'a'", "[" * 200_000, b"\xff"]
)
def test_text_that_is_not_json_is_refused(text):
    with pytest.raises(InvalidInput):
        parse_json(text)


def test_of_duplicate_keys_the_last_wins():
    assert parse_json('{"a":1,"a":2}') == {"a": 2}
