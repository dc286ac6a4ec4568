"""What the stand-in model says: a pure function from the conversation to the next assistant message.

Two sources of lines. The demo's story has scenes, recognised by a phrase in the last user message.
Tests write their own in user messages, as directives; ``/turn`` separates turns::

    /call calendar:list-events {"day": "2026-03-12"}
    /call calendar:list-events {"day": "2026-03-13"}
    /turn
    /say Both days are read.

``/raw`` is ``/say`` without the runtime's JSON form around it.
A conversation that fits neither is answered with a plain sentence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

INSTANT = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
DAY = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True)
class Call:
    """A wish to call a tool, by its name in the workspace file."""

    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Line:
    """One assistant message: calls, or else text; ``verbatim`` text is sent as it is."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    verbatim: bool = False


@dataclass(frozen=True)
class Conversation:
    """What a script may look at.

    Attributes:
        prompts: Text of each user message, in order.
        turn: How many assistant messages came before.
        results: Parsed content of the tool messages, in order; text that is not JSON stays text.
        latest: Those of them that answer the last turn.
    """

    prompts: tuple[str, ...]
    turn: int
    results: tuple[Any, ...]
    latest: tuple[Any, ...]

    @staticmethod
    def of(messages: Sequence[Mapping[str, Any]]) -> Conversation:
        """Read the messages of a chat completions request."""
        users = tuple(text_of(message) for message in messages if message.get("role") == "user")
        assistant = [index for index, message in enumerate(messages) if message.get("role") == "assistant"]
        start = assistant[-1] if assistant else 0
        return Conversation(users, len(assistant), _results(messages), _results(messages[start:]))

    @property
    def prompt(self) -> str:
        """All that the user said."""
        return "\n".join(self.prompts)

    def event(self, title: str) -> Mapping[str, Any] | None:
        """The event of that title as the tool results last told it."""
        found = [event for event in _objects(self.results) if event.get("title") == title and "id" in event]
        return found[-1] if found else None

    @property
    def refused(self) -> bool:
        """Whether what the last turn asked for was denied or failed."""
        return any(
            each.get("success") is False or each.get("approved") is False for each in _objects(self.latest)
        )


def next_line(messages: Sequence[Mapping[str, Any]]) -> Line:
    """The assistant message that follows ``messages``; the same messages give the same answer."""
    conversation = Conversation.of(messages)
    directed = _directives(conversation.prompts)
    if directed:
        return directed[conversation.turn] if conversation.turn < len(directed) else Line("Done.")
    positions = {scene: conversation.prompt.rfind(phrase) for phrase, scene in SCENES.items()}
    scene = max(positions, key=lambda each: positions[each])
    if positions[scene] < 0:
        return Line("This is the scripted stand-in model; it knows only the demo's story.")
    return scene(conversation)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a message whose content is a string or a list of parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "\n".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return content if isinstance(content, str) else ""


# --- the story -----------------------------------------------------------------------------------


def _collect_context(conversation: Conversation) -> Line:
    if conversation.turn == 0:
        days = sorted(set(DAY.findall(conversation.prompt))) or ["2026-03-12"]
        return Line(calls=tuple(Call("calendar:list-events", {"day": day}) for day in days))
    titles = sorted({str(event["title"]) for event in _objects(conversation.results) if "title" in event})
    return Line(f"On the calendar: {', '.join(titles) or 'nothing'}.")


def _reschedule_review(conversation: Conversation) -> Line:
    if conversation.turn == 0:
        return Line(calls=(Call("calendar:list-events", {}),))
    review = conversation.event("Weekly review")
    if review is None:
        return Line("There is no event called 'Weekly review' that I can see, so nothing was moved.")
    start = (INSTANT.findall(conversation.prompt) or ["2026-03-13T09:00:00Z"])[-1]
    if conversation.turn == 1:
        return Line(calls=(Call("calendar:reschedule-event", {"event_id": review["id"], "start": start}),))
    if conversation.refused:
        return Line("The weekly review could not be moved.")
    return Line(f"The weekly review now starts at {start}.")


def _reschedule_at_once(conversation: Conversation) -> Line:
    """The documents' first example, where the only tool on offer is the one that moves an event."""
    start = "2026-03-13T09:00:00Z"
    if conversation.turn == 0:
        return Line(calls=(Call("calendar:reschedule-event", {"event_id": "evt-review", "start": start}),))
    if conversation.refused:
        return Line("The weekly review could not be moved.")
    return Line(f"The weekly review now starts at {start}.")


def _prepare_agenda(conversation: Conversation) -> Line:
    start = (INSTANT.findall(conversation.prompt) or ["2026-03-13T08:30:00Z"])[-1]
    if conversation.turn == 0:
        event = {"title": "Prepare the agenda", "start": start, "minutes": 30}
        return Line(calls=(Call("calendar:create-event", event),))
    if conversation.refused:
        return Line("The agenda slot could not be created.")
    return Line(f"Half an hour for the agenda is booked at {start}.")


def _hand_off(conversation: Conversation) -> Line:
    if conversation.turn == 0:
        return Line(calls=(Call("calendar:list-events", {}),))
    obsolete = conversation.event("Old planning call")
    if obsolete is None:
        return Line("Handed off; there is no obsolete event left.")
    if conversation.turn == 1:
        return Line(calls=(Call("calendar:delete-event", {"event_id": obsolete["id"]}),))
    if conversation.refused:
        return Line("Handed off; the old planning call stays, because its deletion was not approved.")
    return Line("Handed off; the old planning call is deleted.")


# Where several phrases begin at the same place of a prompt, the first of them here wins.
SCENES: Mapping[str, Callable[[Conversation], Line]] = {
    "Reschedule the weekly review for tomorrow morning.": _reschedule_at_once,
    "Collect the scheduling constraints": _collect_context,
    "Reschedule the weekly review": _reschedule_review,
    "Prepare the agenda": _prepare_agenda,
    "Write the hand-off": _hand_off,
}


# --- directives ------------------------------------------------------------------------------------


def _directives(prompts: Sequence[str]) -> list[Line]:
    """The turns that the prompts spell out, each prompt beginning a new turn; empty without a directive."""
    turns: list[Line] = []
    calls: list[Call] = []
    said: list[str] = []
    verbatim = False
    for row in (row for prompt in prompts for row in [*prompt.splitlines(), "/turn"]):
        word, _, rest = row.strip().partition(" ")
        if word == "/call":
            name, _, arguments = rest.strip().partition(" ")
            calls.append(Call(name, json.loads(arguments or "{}")))
        elif word in {"/say", "/raw"}:
            said.append(rest)
            verbatim = word == "/raw"
        elif word == "/turn" and (calls or said):
            turns.append(Line("\n".join(said), tuple(calls), verbatim))
            calls, said, verbatim = [], [], False
    return turns


def _results(messages: Sequence[Mapping[str, Any]]) -> tuple[Any, ...]:
    return tuple(_parsed(text_of(message)) for message in messages if message.get("role") == "tool")


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    """Every JSON object inside ``value``, outermost first."""
    if isinstance(value, Mapping):
        yield value
        for inner in value.values():
            yield from _objects(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _objects(inner)
