"""``agent-runtime sessions``: look at sessions and steer them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.core.model import SessionStatus
    from runtime.engine.handle import SessionHandle
    from runtime.store.listing import ListedStep
    from runtime.store.sessions import StoredNode, StoredSession

group = typer.Typer(help="Look at sessions and steer them.", no_args_is_help=True)

As = Annotated[
    str | None, typer.Option("--as", metavar="NAME", help="The principal that the session belongs to.")
]


@group.command("list")
def list_(
    limit: options.Limit = 50,
    before: Annotated[
        str | None, typer.Option(metavar="SESSION", help="Go on behind the last session of a page.")
    ] = None,
    as_json: options.Json = False,
) -> None:
    """List sessions, the newest first."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import local, print_table
    from runtime.store.listing import list_sessions

    with open_database() as database:
        if before is not None:
            find(database, before)
        found = list_sessions(database, before=before, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    following = page[-1].session.id if more else None
    if as_json:
        documents = [{**session_json(each.session, each.status), "node_count": each.nodes} for each in page]
        write_json({"sessions": documents, "next": following})
        return
    print_table(
        ("session", "status", "nodes", "created", "ended", "principal"),
        (
            (
                each.session.id,
                each.status.value,
                each.nodes,
                local(each.session.created_at),
                local(each.session.ended_at),
                each.session.principal,
            )
            for each in page
        ),
    )
    if following is not None:
        note(f"there are more: agent-runtime sessions list --before {following!r}")


@group.command()
def show(
    session_id: options.SessionId,
    as_json: options.Json = False,
    as_mermaid: Annotated[
        bool, typer.Option("--mermaid", help="Print the graph as a Mermaid flowchart, and nothing else.")
    ] = False,
) -> None:
    """Show a session: its graph, why it moved of late, and what it waits for."""
    from runtime.edges.cli.approvals import approval_json
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.store.approvals import list_approvals
    from runtime.store.listing import last_continuations
    from runtime.store.sessions import read_nodes

    with open_database() as database:
        session, status = find(database, session_id)
        nodes = read_nodes(database, session_id)
        moves = last_continuations(database, session_id)
        pending = list_approvals(database, session_id=session_id)
    if as_mermaid:
        from runtime.edges.cli.graph import mermaid

        if as_json:
            write_json({"session_id": session_id, "mermaid": mermaid(nodes)})
        else:
            typer.echo(mermaid(nodes))
        return
    if as_json:
        document = {
            **session_json(session, status),
            "nodes": [node_json(node) for node in nodes],
            "continuations": [_move_json(move) for move in moves],
            "pending_approvals": [approval_json(approval) for approval in pending],
        }
        write_json(document)
        return
    _print_session(session, status, nodes, moves, pending)


def _print_session(
    session: StoredSession,
    status: SessionStatus,
    nodes: list[StoredNode],
    moves: list[dict[str, Any]],
    pending: list[Any],
) -> None:
    from rich.console import Console

    from runtime.edges.cli.graph import draw
    from runtime.edges.cli.show import WIDTH, local, one_line, print_lines, print_table

    print_lines(
        f"session {session.id}: {status.value}",
        f"{session.kind} of run {session.run_id}, task {session.task_id}",
        f"belongs to {session.principal or 'nobody named'}",
        f"created {local(session.created_at)}, ended {local(session.ended_at)}",
    )
    if nodes:
        print_lines("")
        Console(width=WIDTH, highlight=False).print(draw(nodes))
    if moves:
        print_lines("", "continuations")
        columns = ("sequence", "kind", "node_id", "request_id")
        rows = ((*(move.get(name) for name in columns), local(move["at"])) for move in moves)
        print_table(("number", "kind", "node", "approval", "at"), rows)
    if pending:
        print_lines("", "waiting for an answer: agent-runtime approvals approve|deny REQUEST_ID")
        print_table(
            ("request", "node", "tool", "expires", "input"),
            (
                (each.request_id, each.node_id, each.tool_name, local(each.expires_at), one_line(each.input))
                for each in pending
            ),
        )


@group.command()
def steps(
    session_id: options.SessionId,
    limit: options.Limit = 100,
    after: options.Cursor = None,
    as_json: options.Json = False,
) -> None:
    """List a session's steps, node by node; --after takes a step's id."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import local, print_table
    from runtime.store.listing import list_steps

    with open_database() as database:
        find(database, session_id)
        found = list_steps(database, session_id, after=after, limit=limit + 1)
    page, more = found[:limit], found[limit:]
    following = page[-1].id if more else None
    if as_json:
        write_json(
            {"session_id": session_id, "steps": [_step_json(step) for step in page], "next": following}
        )
        return
    print_table(
        ("step", "node", "turn", "tool", "status", "reason", "attempts", "worker", "started", "finished"),
        (
            (
                step.id,
                step.node_id,
                step.turn_index,
                step.tool_name,
                step.status,
                step.reason,
                step.attempts,
                step.worker,
                local(step.started_at),
                local(step.finished_at),
            )
            for step in page
        ),
    )
    if following is not None:
        note(f"there are more: --after {following}")


Reason = Annotated[str | None, typer.Option(help="Why; evidence keeps it.")]

Key = Annotated[str | None, typer.Option(metavar="KEY", help="A repeat with the same key changes nothing.")]


@group.command()
def cancel(session_id: options.SessionId, reason: Reason = None, as_json: options.Json = False) -> None:
    """Stop what has not started; what is running may finish. Harmless to repeat."""
    with _steering(session_id) as handle:
        status = handle.cancel(reason)
    _tell_status(session_id, status, as_json)


@group.command()
def pause(session_id: options.SessionId, reason: Reason = None, as_json: options.Json = False) -> None:
    """Let nothing start until it is unpaused; what is running finishes. Harmless to repeat."""
    with _steering(session_id) as handle:
        status = handle.pause(reason)
    _tell_status(session_id, status, as_json)


@group.command()
def unpause(session_id: options.SessionId, reason: Reason = None, as_json: options.Json = False) -> None:
    """Let a paused session go on. Harmless to repeat."""
    with _steering(session_id) as handle:
        status = handle.unpause(reason)
    _tell_status(session_id, status, as_json)


@contextmanager
def _steering(session_id: str) -> Iterator[SessionHandle]:
    """The handle of a session for the operator, who may see and stop every session."""
    from runtime.edges.cli.opening import find, open_database, open_runtime
    from runtime.engine.handle import SessionHandle

    with open_database() as database:
        find(database, session_id)
    with open_runtime() as runtime:
        yield SessionHandle(runtime.parts, session_id)


@group.command()
def resume(
    session_id: options.SessionId,
    message: Annotated[
        list[str] | None, typer.Option(help="Say this as the user; linear sessions only.")
    ] = None,
    max_turns: Annotated[
        int | None, typer.Option(min=1, help="Turn budget of the nodes that go on; default: their own.")
    ] = None,
    key: Key = None,
    principal: As = None,
    as_json: options.Json = False,
) -> None:
    """Wake what is due, continue what is suspended, retry what failed, or say something more."""
    from runtime.edges.cli.opening import find, open_database, open_runtime

    with open_database() as database:
        find(database, session_id)
    with open_runtime() as runtime:
        status = runtime.resume(
            session_id,
            principal=principal,
            messages=_said(message) or None,
            idempotency_key=key,
            max_turns_per_invocation=max_turns,
        ).status()
    _tell_status(session_id, status, as_json)


@group.command()
def signal(
    session_id: options.SessionId,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A node that has not ended.")],
    message: Annotated[list[str], typer.Option(help="Say this to it as the user; may be repeated.")],
    key: Key = None,
    principal: As = None,
    as_json: options.Json = False,
) -> None:
    """Hand messages to a node; its next turn sees them."""
    from runtime.edges.cli.opening import find, open_database, open_runtime

    with open_database() as database:
        find(database, session_id)
    with open_runtime() as runtime:
        handle = runtime.signal(session_id, node, _said(message), idempotency_key=key, principal=principal)
        status = handle.status()
    _tell_status(session_id, status, as_json)


@group.command()
def fork(
    session_id: options.SessionId,
    node: Annotated[str, typer.Argument(metavar="NODE", help="The node that runs again.")],
    new_session_id: Annotated[str, typer.Argument(metavar="NEW_SESSION", help="Id of the new session.")],
    message: Annotated[
        list[str] | None, typer.Option(help="Tell the node this as the user, instead of what it was told.")
    ] = None,
    allow_effects: Annotated[
        bool, typer.Option("--allow-effects", help="Let calls that must happen once be made again.")
    ] = False,
    principal: As = None,
    as_json: options.Json = False,
) -> None:
    """Run a node and what follows from it again, in a new session that keeps the rest."""
    from runtime.edges.cli.opening import find, open_database, open_runtime

    with open_database() as database:
        find(database, session_id)
    with open_runtime() as runtime:
        handle = runtime.fork(
            session_id,
            node,
            new_session_id=new_session_id,
            principal=principal,
            allow_effects=allow_effects,
            messages=_said(message) or None,
        )
        status = handle.status()
    _tell_status(new_session_id, status, as_json)


def _said(texts: list[str] | None) -> list[dict[str, str]]:
    return [{"role": "user", "content": text} for text in texts or ()]


def _tell_status(session_id: str, status: SessionStatus, as_json: bool) -> None:
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_lines

    if as_json:
        write_json({"session_id": session_id, "status": status.value})
    else:
        print_lines(f"session {session_id}: {status.value}")


# --- JSON -----------------------------------------------------------------------------------------


def session_json(session: StoredSession, status: SessionStatus) -> dict[str, Any]:
    """A session as JSON."""
    from runtime.edges.cli.show import rfc3339

    return {
        "session_id": session.id,
        "kind": session.kind,
        "run_id": session.run_id,
        "task_id": session.task_id,
        "principal": session.principal,
        "status": status.value,
        "created_at": rfc3339(session.created_at),
        "cancelled_at": rfc3339(session.cancelled_at),
        "paused_at": rfc3339(session.paused_at),
        "ended_at": rfc3339(session.ended_at),
    }


def node_json(node: StoredNode) -> dict[str, Any]:
    """A node as JSON."""
    from runtime.edges.cli.show import rfc3339

    return {
        "id": node.id,
        "status": node.status.value,
        "reason": node.reason,
        "depends_on": list(node.depends_on),
        "turns": node.turns,
        "tool_calls": node.tool_calls,
        "wake_at": rfc3339(node.wake_at),
        "pending_request_id": node.pending_request_id,
        "result": node.result,
        "error": node.error,
    }


def _step_json(step: ListedStep) -> dict[str, Any]:
    from dataclasses import asdict

    from runtime.edges.cli.show import rfc3339

    instants = ("due_at", "started_at", "finished_at")
    return {**asdict(step), **{name: rfc3339(getattr(step, name)) for name in instants}}


def _move_json(move: dict[str, Any]) -> dict[str, Any]:
    from runtime.edges.cli.show import rfc3339

    return {**move, "at": rfc3339(move["at"])}
