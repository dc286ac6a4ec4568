"""``agent-runtime approvals``: what waits for a person, and the person's answer."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.core.chain import Content
    from runtime.store.approvals import Approval

group = typer.Typer(help="See what waits for a person, and answer it.", no_args_is_help=True)

Reason = Annotated[str | None, typer.Option(help="Why; evidence keeps it, and a denied model is told.")]
As = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="Answer under this name; evidence says that it is asserted."),
]
Digest = Annotated[
    str | None,
    typer.Option(metavar="DIGEST", help="The digest that 'show' printed: answer that call, or none."),
]


class Status(StrEnum):
    """Which requests to list."""

    PENDING = "pending"
    APPROVED = "approved"
    DENIED = "denied"
    ANSWERED = "answered"
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
        answers = [{**asdict(vote), "at": rfc3339(vote.at)} for vote in votes]
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
        *_rule_lines(approval),
    )
    if votes:
        print_lines("")
        print_table(
            ("answer", "by", "established by", "at", "reason"),
            (
                (_said(v.answer, v.approved), v.principal, v.established_by, local(v.at), v.reason)
                for v in votes
            ),
        )
    for vote in votes:
        if vote.answer in ("edit", "respond"):
            print_lines("", f"{vote.principal} would {_WOULD[vote.answer]}")
            print_json_block(vote.content)


_WOULD = {"edit": "have it run with", "respond": "have the model told, instead of running it,"}


def _said(answer: str | None, approved: bool) -> str:
    return {"edit": "edited", "respond": "responded"}.get(answer or "", "approved" if approved else "denied")


def _rule_lines(approval: Approval) -> list[str]:
    """What the request asks of those who answer, where it asks for something."""
    from runtime.core.quorum import Requirement
    from runtime.edges.cli.show import local

    asks = approval.requirement
    if asks == Requirement():
        return []
    lines = [f"needs {asks.quorum} who say the same; {approval.votes} answered so far"]
    allowed = asks.may_answer(escalated=approval.escalated_at is not None)
    if allowed is not None:
        lines.append(f"may be answered by {', '.join(sorted(allowed)) or 'nobody'}")
    if asks.separation_of_duty:
        lines.append("may not be approved by the principal it was asked for")
    if approval.escalate_at is not None:
        lines.append(f"escalates {local(approval.escalate_at)} to {', '.join(sorted(asks.escalate_to))}")
    return lines


@group.command()
def approve(
    request_id: options.RequestId,
    reason: Reason = None,
    principal: As = None,
    digest: Digest = None,
    as_json: options.Json = False,
) -> None:
    """Let the call run, once, exactly as it was asked for."""
    _answer(request_id, True, reason, principal, as_json, digest=digest)


@group.command()
def deny(
    request_id: options.RequestId,
    reason: Reason = None,
    principal: As = None,
    digest: Digest = None,
    as_json: options.Json = False,
) -> None:
    """Refuse the call; the model is told so."""
    _answer(request_id, False, reason, principal, as_json, digest=digest)


@group.command()
def edit(
    request_id: options.RequestId,
    input: Annotated[str, typer.Option("--input", metavar="JSON", help="The input to run it with.")],
    reason: Reason = None,
    principal: As = None,
    digest: Digest = None,
    as_json: options.Json = False,
) -> None:
    """Let the call run, once, with another input, which is checked and decided anew."""
    _answer(request_id, True, reason, principal, as_json, digest=digest, input=_json("--input", input))


@group.command()
def respond(
    request_id: options.RequestId,
    response: Annotated[str, typer.Option("--response", metavar="JSON", help="What the tool would return.")],
    reason: Reason = None,
    principal: As = None,
    digest: Digest = None,
    as_json: options.Json = False,
) -> None:
    """Supply the call's output; the tool does not run."""
    _answer(
        request_id, True, reason, principal, as_json, digest=digest, response=_json("--response", response)
    )


def _json(option: str, given: str) -> Content:
    """What was given as JSON.

    Raises:
        BadParameter: If it is none.
    """
    import json

    from runtime.core.chain import Content
    from runtime.errors import InvalidInput

    try:
        return Content.of(json.loads(given))
    except (ValueError, RecursionError, InvalidInput) as error:
        raise typer.BadParameter(f"it is not plain JSON ({error}); quote it", param_hint=option) from None


def who(principal: str | None) -> tuple[str, str]:
    """Under which name somebody at the command line acts, and how that is known.

    Raises:
        BadParameter: If the name cannot be shown.
    """
    from runtime.engine.approvals import os_user

    if principal is None:
        return os_user(), "os-user"
    if not (principal.strip() and principal.isprintable()):
        raise typer.BadParameter("give a printable name, or leave the option out", param_hint="--as")
    return principal, "asserted"


def _answer(
    request_id: str,
    approved: bool,
    reason: str | None,
    principal: str | None,
    as_json: bool,
    *,
    digest: str | None,
    input: Content | None = None,
    response: Content | None = None,
) -> None:
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_runtime
    from runtime.edges.cli.show import print_lines
    from runtime.engine.approvals import resolve
    from runtime.engine.votes import Answer

    name, established_by = who(principal)
    answer = Answer(request_id, approved, name, established_by, reason, input, response, digest)
    with open_runtime() as runtime:
        resolution = resolve(runtime.parts, answer)
    if as_json:
        write_json({**asdict(resolution), "answer": answer.kind, "established_by": established_by})
        return
    done = _said(answer.kind, approved)
    if resolution.status == "pending":
        done += f" ({resolution.votes} of {resolution.quorum}, so it still waits)"
    print_lines(
        f"{done}: {resolution.tool_name} of session {resolution.session_id}, by {resolution.approved_by} "
        f"({established_by})"
    )


def approval_json(approval: Approval) -> dict[str, Any]:
    """An approval request as JSON."""
    import json

    from runtime.edges.cli.show import rfc3339

    fields = asdict(approval)
    rule = approval.requirement.to_text()
    fields["requirement"] = None if rule is None else json.loads(rule)
    instants = ("requested_at", "expires_at", "resolved_at", "escalate_at", "escalated_at")
    return {**fields, **{name: rfc3339(getattr(approval, name)) for name in instants}}
