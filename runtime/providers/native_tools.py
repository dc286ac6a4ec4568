"""Tool schemas as a native request declares them, and the property in which a call states its intent."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from runtime.core.turn import CatalogIntent, CatalogTool
from runtime.providers.bodies import text_of

INTENT_PROPERTY = "agent_intent"


class IntentFields:
    """Adds a required ``agent_intent`` to every tool's schema, and takes it out of a call's input.

    Without an intent catalogue nothing is added. A tool that has a property of that name already gets the
    first free ``agent_intent_2``, ``agent_intent_3``, …
    """

    def __init__(self, tools: Sequence[CatalogTool], intents: Sequence[CatalogIntent]) -> None:
        self._intents = [intent.id for intent in intents]
        self._fields = {tool.name: _free_property(tool) for tool in tools} if intents else {}

    def schema(self, tool: CatalogTool) -> dict[str, Any]:
        """The input schema to declare: always of type ``object`` (rule 3)."""
        schema: dict[str, Any] = {**(tool.input_schema or {}), "type": "object"}
        properties = schema.get("properties")
        schema["properties"] = dict(properties) if isinstance(properties, dict) else {}
        field = self._fields.get(tool.name)
        if field is not None:
            schema["properties"][field] = {
                "type": "string",
                "enum": self._intents,
                "description": "The intent that this call serves.",
            }
            required = schema.get("required")
            schema["required"] = [*(required if isinstance(required, list) else ()), field]
        return schema

    def split(self, name: str, arguments: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
        """A call's input without the intent, and the intent if it is a non-blank string."""
        field = self._fields.get(name)
        if field is None or field not in arguments:
            return arguments, None
        rest = {key: value for key, value in arguments.items() if key != field}
        return rest, text_of(arguments[field])


def _free_property(tool: CatalogTool) -> str:
    properties = (tool.input_schema or {}).get("properties")
    taken = properties if isinstance(properties, dict) else {}
    number, field = 2, INTENT_PROPERTY
    while field in taken:
        field, number = f"{INTENT_PROPERTY}_{number}", number + 1
    return field
