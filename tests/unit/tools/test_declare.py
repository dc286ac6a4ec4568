"""Declaring tools: what is derived from a function, what is refused, what an input must be."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel

from runtime.core.model import Effect, PathScope
from runtime.errors import ConfigurationError, InvalidInput
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool


class Event(BaseModel):
    title: str
    day: date
    guests: list[str] = []


def declared(**changes):
    arguments: dict[str, Any] = {"name": "calendar:create-event", **changes}

    @tool(**arguments)
    def create(input: Event, ctx: ToolContext) -> Event:
        """Create an event.

        More for developers.
        """
        return input

    return create


def with_schema(schema, **changes):
    @tool("t:x", description="x", input_schema=schema, **changes)
    def handler(input: dict, ctx: ToolContext):
        return input

    return handler


def test_a_definition_takes_description_and_schemas_from_the_function():
    definition = declared()
    assert definition.description == "Create an event."
    assert definition.input_schema["required"] == ["title", "day"]
    assert definition.output_schema is not None
    assert (definition.effect, definition.queue, definition.time_limit) == (Effect.ONCE, "tools", 60.0)


def test_a_declared_function_stays_callable():
    event = Event(title="x", day=date(2026, 1, 2))
    assert declared()(event, None) is event


def test_scopes_may_be_given_as_in_the_workspace_file():
    scope = {"type": "path", "pattern": "calendar/**", "access": "write"}
    assert declared(scopes=[scope]).scopes == (PathScope(pattern="calendar/**", access="write"),)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": ""}, "1-200 printable characters"),
        ({"name": "a\nb"}, "1-200 printable characters"),
        ({"name": "agent:execute-turn"}, "the name of the kernel's own model call — give the tool another"),
        ({"effect": "twice"}, "effect 'twice' — write 'read', 'idempotent' or 'once'"),
        ({"time_limit": 0}, "time_limit 0 — write a number of seconds above 0"),
        ({"scopes": [{"type": "path"}]}, "scopes.*write e.g."),
        ({"input_schema": {}}, "keep one of them"),
        ({"output_schema": {"type": "nothing"}}, "output_schema of tool 'calendar:create-event' is wrong at"),
    ],
)
def test_a_wrong_declaration_names_the_value_and_the_fix(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        declared(**arguments)


def test_a_function_needs_a_description():
    def silent(input: dict, ctx: ToolContext):
        return input

    with pytest.raises(ConfigurationError, match="write a docstring"):
        tool("t:x")(silent)


def test_a_function_takes_input_and_context():
    with pytest.raises(ConfigurationError, match=r"takes 1 arguments — write def <lambda>\(input, ctx\)"):
        tool("t:x", description="x")(lambda input: input)


def test_an_input_that_is_no_object_type_is_refused():
    def handler(input: int, ctx: ToolContext):
        return input

    with pytest.raises(ConfigurationError, match="annotate it with a pydantic model or dict"):
        tool("t:x", description="x")(handler)


def test_without_an_input_schema_any_object_is_accepted():
    assert with_schema(None).parse({"a": {"b": 1}}) == {"a": {"b": 1}}


def test_a_model_is_parsed_from_json_forms():
    assert declared().parse({"title": "x", "day": "2026-01-02"}).day == date(2026, 1, 2)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"title": 1, "day": "2026-01-02"}, "title"),
        ({"title": "x"}, "day"),
        ({"title": "x", "day": "2026-01-02", "guests": ["a", 2]}, "guests[1]"),
        ({"title": "x", "day": "2026-01-02", "colour": "red"}, ""),
        ([], ""),
        (None, ""),
    ],
)
def test_an_input_that_does_not_fit_its_model_is_refused_with_its_path(value, path):
    with pytest.raises(InvalidInput) as caught:
        declared().parse(value)
    assert [problem["path"] for problem in caught.value.details["problems"]] == [path]


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({"n": "1"}, "n"),
        ({}, ""),
        ({"n": 1, "m": 2}, ""),
        ({"n": 1, "inner": {"x": 1, "y": 2}}, "inner"),
        ({"n": 1, "list": [{"a": 1}, {"b": 1}]}, "list[1]"),
    ],
)
def test_an_input_that_does_not_fit_its_schema_is_refused_with_its_path(value, path):
    """Keys that a schema does not list are refused at every depth, unless it says otherwise."""
    definition = with_schema(
        {
            "type": "object",
            "required": ["n"],
            "properties": {
                "n": {"type": "integer"},
                "inner": {"type": "object", "properties": {"x": {}}},
                "list": {"type": "array", "items": {"properties": {"a": {}}}},
                "open": {"type": "object", "additionalProperties": True},
            },
        }
    )
    assert definition.parse({"n": 1, "inner": {"x": 1}, "open": {"z": 1}})["n"] == 1
    with pytest.raises(InvalidInput) as caught:
        definition.parse(value)
    assert [problem["path"] for problem in caught.value.details["problems"]] == [path]


def test_a_refusal_does_not_repeat_the_value():
    with pytest.raises(InvalidInput) as caught:
        with_schema({"properties": {"n": {"type": "integer"}}}).parse({"n": "hush-hush"})
    assert "hush" not in str(caught.value) + str(caught.value.details)


def test_a_reference_to_another_document_is_not_fetched():
    definition = with_schema({"properties": {"n": {"$ref": "http://127.0.0.1:9/schema.json"}}})
    with pytest.raises(InvalidInput, match="the schema cannot be applied"):
        definition.parse({"n": 1})


def test_the_digest_is_stable():
    assert declared().digest == declared().digest


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "calendar:other"},
        {"version": "2"},
        {"effect": "read"},
        {"scopes_mode": "any"},
        {"scopes": [{"type": "network", "posture": "full"}]},
        {"output_schema": {"type": "object"}},
    ],
)
def test_the_digest_changes_with_what_a_grant_rests_on(changes):
    assert declared(**changes).digest != declared().digest


def test_the_digest_does_not_depend_on_the_order_of_scopes():
    scopes = [{"type": "network", "posture": "off"}, {"type": "path", "pattern": "x", "access": "read"}]
    assert declared(scopes=scopes).digest == declared(scopes=scopes[::-1]).digest
