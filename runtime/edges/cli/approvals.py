"""``agent-runtime approvals``: what waits for a person, and the person's answer."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.store.approvals import Approval

group = typer.Typer(help="See what waits for a person, and answer it.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Why; evidence keeps it, and a denied model is told.")]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Answer under this name; evidence says that it is asserted."),
]


class Status(StrEnum):
    """Which requests to list."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    ALL = "all"


@group.command("list")
def list_(
    session: Annotated[str | None, typer.Option(metavar="SESSION", help="Of this session only.")] = None,
    status: Annotated[Status, typer.Option(help="In this state.")] = Status.PENDING,
    limit: options.Limit = 100,
    as_json: options.Json = False,
) -> None:
    """List approval requests, those that expire first first."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import local, one_line, print_table
    from runtime.store.approvals import list_approvals

    wanted = None if status is Status.ALL else status.value
    with open_database() as database:
        if session is not None:
            find(database, session)
        found = list_approvals(database, session_id=session, status=wanted, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    if as_json:
        write_json({"approvals": [approval_json(approval) for approval in page], "more": more})
        return
    print_table(
        ("request", "status", "session", "tool", "expires", "input"),
        (
            (
                each.request_id,
                each.status,
                each.session_id,
                each.tool_name,
                local(each.expires_at),
                one_line(each.input),
            )
            for each in page
        ),
    )
    if more:
        note(f"there are more than {limit}; raise --limit, or narrow with --session")


@group.command()
def show(request_id: options.RequestId, as_json: options.Json = False) -> None:
    """Show the exact call that an approval request is about, and who answered."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import local, print_json_block, print_lines, print_table, rfc3339
    from runtime.errors import ApprovalRefused
    from runtime.store.approvals import find_approval
    from runtime.store.listing import list_votes

    with open_database() as database:
        with database.reading() as connection:
            approval = find_approval(connection, request_id)
        votes = list_votes(database, request_id)
    if approval is None:
        raise ApprovalRefused(
            f"there is no approval request {request_id[:60]!r}; see 'agent-runtime approvals list'",
            code="not_found",
        )
    if as_json:
        answers = [
            {
                "principal": vote.principal,
                "established_by": vote.established_by,
                "approved": vote.approved,
                "reason": vote.reason,
                "at": rfc3339(vote.at),
            }
            for vote in votes
        ]
        write_json({**approval_json(approval), "votes": answers})
        return
    asked = "run again, though it may have run already" if approval.kind == "in_doubt" else "run"
    print_lines(
        f"request {approval.request_id}: {approval.status}",
        f"may {approval.tool_name} {asked}? with",
    )
    print_json_block(approval.input)
    print_lines(
        f"in session {approval.session_id}, node {approval.node_id}",
        f"asked for by {approval.principal or 'nobody named'}",
        f"because {approval.message}",
        f"asked {local(approval.requested_at)}, expires {local(approval.expires_at)}",
        f"digest {approval.digest}",
    )
    if votes:
        print_lines("")
        print_table(
            ("answer", "by", "established by", "at", "reason"),
            (
                ("approved" if v.approved else "denied", v.principal, v.established_by, local(v.at), v.reason)
                for v in votes
            ),
        )


@group.command()
def approve(
    request_id: options.RequestId, reason: Reason = None, principal: As = None, as_json: options.Json = False
) -> None:
    """Let the call run, once, exactly as it was asked for."""
    _answer(request_id, True, reason, principal, as_json)


@group.command()
def deny(
    request_id: options.RequestId, reason: Reason = None, principal: As = None, as_json: options.Json = False
) -> None:
    """Refuse the call; the model is told so."""
    _answer(request_id, False, reason, principal, as_json)


def _answer(
    request_id: str, approved: bool, reason: str | None, principal: str | None, as_json: bool
) -> None:
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_runtime
    from runtime.edges.cli.show import print_lines
    from runtime.engine.approvals import os_user

    if principal is not None and not (principal.strip() and principal.isprintable()):
        raise typer.BadParameter("give a printable name, or leave the option out", param_hint="--as")
    established_by = "os-user" if principal is None else "asserted"
    with open_runtime() as runtime:
        resolution = runtime.resolve_approval(
            request_id=request_id,
            approved=approved,
            approved_by=principal or os_user(),
            reason=reason,
            established_by=established_by,
        )
    if as_json:
        document = {
            "request_id": resolution.request_id,
            "approved": resolution.approved,
            "approved_by": resolution.approved_by,
            "established_by": established_by,
            "reason": resolution.reason,
            "session_id": resolution.session_id,
            "tool_name": resolution.tool_name,
        }
        write_json(document)
        return
    print_lines(
        f"{'approved' if resolution.approved else 'denied'}: {resolution.tool_name} of session "
        f"{resolution.session_id}, by {resolution.approved_by} ({established_by})"
    )


def approval_json(approval: Approval) -> dict[str, Any]:
    """An approval request as JSON."""
    from dataclasses import asdict

    from runtime.edges.cli.show import rfc3339

    instants = ("requested_at", "expires_at", "resolved_at")
    return {**asdict(approval), **{name: rfc3339(getattr(approval, name)) for name in instants}}
