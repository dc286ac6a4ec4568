"""The demo's story: one scheduling session of four nodes, on a calendar of one week in March.

``collect-context`` reads two days; then ``reschedule-review`` moves the weekly review while
``prepare-agenda`` books time to prepare it; their join ``hand-off`` wants to delete an obsolete event, which
a person must approve.
"""

from __future__ import annotations

from datetime import datetime
from importlib.resources import files
from string import Template
from urllib.parse import urlsplit

from runtime import Workflow, WorkflowNode
from runtime.edges.demo.calendar_tools import Event
from runtime.errors import ConfigurationError

PROFILE = "operations"
DEFAULT_PORTS = {"http": 80, "https": 443}


def _event(id: str, title: str, start: str, minutes: int) -> Event:
    return Event(id=id, title=title, start=datetime.fromisoformat(start), minutes=minutes)


SEED_EVENTS = (
    _event("evt-standup", "Stand-up", "2026-03-12T08:30:00Z", 15),
    _event("evt-planning", "Old planning call", "2026-03-12T11:00:00Z", 45),
    _event("evt-review", "Weekly review", "2026-03-12T16:00:00Z", 60),
    _event("evt-dentist", "Dentist", "2026-03-13T14:00:00Z", 30),
)

RULES = (
    "You keep the calendar. Use the calendar tools; say in one sentence what came of it. Today is 2026-03-12."
)

PROMPTS = {
    "collect-context": "Collect the scheduling constraints: list the events of 2026-03-12 and of 2026-03-13.",
    "reschedule-review": "Reschedule the weekly review for tomorrow morning, to 2026-03-13T09:00:00Z.",
    "prepare-agenda": "Prepare the agenda: create a 30 minute event of that name at 2026-03-13T08:30:00Z.",
    "hand-off": "Write the hand-off. First delete the obsolete event 'Old planning call'.",
}


def workflow(session_id: str) -> Workflow:
    """The story's graph: one node, two branches, and their join."""

    def node(id: str, *depends_on: str) -> WorkflowNode:
        messages = [{"role": "system", "content": RULES}, {"role": "user", "content": PROMPTS[id]}]
        turn = {"session_id": session_id, "model_profile": PROFILE, "messages": messages}
        return WorkflowNode(id=id, execute_turn_input=turn, depends_on=depends_on, context_from=depends_on)

    return Workflow(
        session_id=session_id,
        nodes=(
            node("collect-context"),
            node("reschedule-review", "collect-context"),
            node("prepare-agenda", "collect-context"),
            node("hand-off", "reschedule-review", "prepare-agenda"),
        ),
    )


def workspace_text(*, model: str, base_url: str) -> str:
    """The demo's workspace file for a model at ``base_url``.

    Raises:
        ConfigurationError: The address or the model name cannot stand in the file.
    """
    url = urlsplit(base_url)
    try:
        port = url.port or DEFAULT_PORTS[url.scheme]
    except (KeyError, ValueError):
        port = 0
    if not url.hostname or not port or any(sign in model + base_url for sign in '"\\\n$'):
        raise ConfigurationError(
            f"AGENT_RUNTIME_BASE_URL {base_url!r} or AGENT_RUNTIME_MODEL {model!r} cannot be used; "
            "write an address such as http://127.0.0.1:4010/v1 and a plain model name"
        )
    template = Template((files(__package__) / "workspace.yaml").read_text(encoding="utf-8"))
    return template.substitute(model=model, base_url=base_url, model_host=f"{url.hostname}:{port}")
