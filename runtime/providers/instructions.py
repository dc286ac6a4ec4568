"""What the model is told: the JSON contract of ``tool_mode: prompt``, the intents of ``native``."""

from __future__ import annotations

from runtime.core.turn import CatalogIntent, CatalogTool, compact_json

_CONTRACT = """\
Answer with one JSON object and nothing else, with these keys:
- "status": "reply" (you answer and wait for the person), "tool_request" (you need a tool), "complete" (the \
work is done) or "escalate" (a person must take over).
- "intent": the id of the intent that this turn serves.
- "assistant_message": text for the person; it may be empty.
- "requested_tool": only with "tool_request": {"name": the tool's name, "input": a JSON object}."""

_NATIVE = """\
Every tool call must state the intent that it serves. To hand over to a person, or to state that the work is \
done, you may answer with one JSON object {"status": "escalate" or "complete", "intent": the id of an \
intent, "assistant_message": text for the person}; otherwise answer in plain text."""


def prompt_instruction(tools: tuple[CatalogTool, ...], intents: tuple[CatalogIntent, ...]) -> str:
    """The system instruction that asks for the JSON object, with the tools' input schemas."""
    lines = [_CONTRACT, "", "Intents:" if intents else "No intents are listed; name one in a word or two."]
    lines += [f"- {intent.id}: {intent.description}" for intent in intents]
    lines.append("Tools:" if tools else "No tools are available.")
    for tool in tools:
        lines.append(f"- {tool.name}: {tool.description}")
        if tool.input_schema is not None:
            lines.append(f"  input schema: {compact_json(tool.input_schema).decode()}")
    return "\n".join(lines)


def native_instruction(intents: tuple[CatalogIntent, ...]) -> str | None:
    """The system instruction that explains the intents, if there are any."""
    if not intents:
        return None
    listed = [f"- {intent.id}: {intent.description}" for intent in intents]
    return "\n".join([_NATIVE, "", "Intents:", *listed])
