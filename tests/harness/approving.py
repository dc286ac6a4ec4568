"""Runtimes whose workspace file says how approvals are answered."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from runtime import start_governed_agent_session
from runtime.agent_runtime import AgentRuntime
from runtime.core.chain import Receipt
from runtime.engine.approvals import Resolution, resolve
from runtime.engine.votes import Answer
from runtime.store.evidence import read_receipts
from tests.harness.inline import InlineWorkers
from tests.harness.sessions import call, context, turn_input

ANN, BOB, CAT = "ann@example.com", "bob@example.com", "cat@example.com"


def write_approvals(folder: Path, **approvals: Any) -> Path:
    """Give the workspace file a section on approvals; return the file."""
    path = folder / "workspace.yaml"
    content = yaml.safe_load(path.read_text())
    content["agent_runtime"]["approvals"] = approvals
    path.write_text(yaml.safe_dump(content))
    return path


@contextmanager
def approving(
    folder: Path, url: str, *, established_by: str = "http-auth", **approvals: Any
) -> Iterator[AgentRuntime]:
    """A runtime under such a section, for an application that authenticates who answers."""
    path = write_approvals(folder, **approvals)
    with AgentRuntime.open(path, database_url=url, answers_established_by=established_by) as runtime:
        runtime.activate_workspace()
        yield runtime


def park(
    runtime: AgentRuntime, name: str = "g", *, session_id: str = "s-1", principal: str | None = CAT
) -> tuple[InlineWorkers, str]:
    """Run a session until its call waits; who runs it on, and the request."""
    workers = InlineWorkers(runtime)
    start_governed_agent_session(
        runtime=runtime,
        execute_turn_input=turn_input(call("ledger:guarded", name), "/say Done."),
        ctx=context(session_id, principal=principal),
    )
    workers.drain()
    (request,) = runtime.approvals(session_id)
    return workers, request.request_id


def say(runtime: AgentRuntime, request_id: str, who: str, approved: bool = True, **values: Any) -> Resolution:
    """Answer through the public interface."""
    return runtime.resolve_approval(request_id=request_id, approved=approved, approved_by=who, **values)


def say_as(runtime: AgentRuntime, request_id: str, who: str, established_by: str) -> Resolution:
    """Approve as an edge does that knows its people in that way."""
    return resolve(runtime.parts, Answer(request_id, True, who, established_by))


def kinds(runtime: AgentRuntime, session_id: str = "s-1") -> list[str]:
    """Kinds of the session's receipts, in order."""
    return [receipt.kind for receipt in receipts(runtime, session_id)]


def receipts(runtime: AgentRuntime, session_id: str = "s-1") -> list[Receipt]:
    """The session's receipts, in order."""
    with runtime.parts.database.reading() as connection:
        return list(read_receipts(connection, session_id))
