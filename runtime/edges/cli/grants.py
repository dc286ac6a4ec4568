"""``agent-runtime grants``: approvals given beforehand, for calls that fit them."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options
from runtime.edges.cli.approvals import As, who

if TYPE_CHECKING:
    from runtime.store.grants import StandingGrant

group = typer.Typer(help="Approve beforehand what is asked for again and again.", no_args_is_help=True)

Tools = Annotated[list[str], typer.Argument(metavar="TOOL...", help="Tool names, or patterns with *.")]
Where = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATH=VALUE",
        help="What the input must hold, such as target.zone=test; a value is read as JSON if it is some. "
        "Or one condition of policy rules, as a JSON object.",
    ),
]


@group.command()
def add(
    tools: Tools,
    uses: Annotated[int, typer.Option(min=1, help="How many calls may run.")],
    expires: Annotated[str, typer.Option(metavar="DURATION", help="For how long, such as 8h.")],
    where: Where = None,
    reason: Annotated[str | None, typer.Option(help="Why.")] = None,
    principal: As = None,
    as_json: options.Json = False,
) -> None:
    """Let calls that fit run without being asked each time; each use counts as your own answer."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_runtime
    from runtime.edges.cli.show import local, print_lines
    from runtime.engine.standing import NewGrant, make_grant

    name, established_by = who(principal)
    given = NewGrant(tuple(tools), _condition(where or []), uses, expires, name, established_by, reason)
    with open_runtime() as runtime:
        grant = make_grant(runtime.parts, given)
    if as_json:
        write_json(grant_json(grant))
        return
    print_lines(
        f"{grant.id}: {', '.join(grant.tools)} may run {grant.uses} times until {local(grant.expires_at)}, "
        f"by {grant.granted_by} ({grant.established_by})"
    )


@group.command("list")
def list_(
    every: Annotated[bool, typer.Option("--all", help="Also those that let nothing more run.")] = False,
    limit: options.Limit = 100,
    as_json: options.Json = False,
) -> None:
    """List standing grants, the newest first."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import local, one_line, print_table
    from runtime.store.grants import list_grants

    with open_database() as database:
        found = list_grants(database, active=not every, limit=limit + 1)
    page, more = found[:limit], len(found) > limit
    if as_json:
        write_json({"grants": [grant_json(grant) for grant in page], "more": more})
        return
    print_table(
        ("grant", "tools", "where", "used", "by", "expires", "revoked"),
        (
            (
                each.id,
                ", ".join(each.tools),
                None if each.condition is None else one_line(each.condition),
                f"{each.used} of {each.uses}",
                each.granted_by,
                local(each.expires_at),
                None if each.revoked_at is None else f"{local(each.revoked_at)} by {each.revoked_by}",
            )
            for each in page
        ),
    )
    if more:
        note(f"there are more than {limit}; raise --limit")


@group.command()
def revoke(
    grant_id: Annotated[str, typer.Argument(metavar="GRANT", help="A standing grant's id.")],
    principal: As = None,
    as_json: options.Json = False,
) -> None:
    """End a standing grant; calls that it let run are not affected."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_runtime
    from runtime.edges.cli.show import print_lines
    from runtime.engine.standing import end_grant

    name, _ = who(principal)
    with open_runtime() as runtime:
        grant = end_grant(runtime.parts, grant_id, name)
    if as_json:
        write_json(grant_json(grant))
        return
    print_lines(f"{grant.id} was revoked by {grant.revoked_by}; {grant.used} of {grant.uses} uses were made")


def _condition(where: list[str]) -> dict[str, Any] | None:
    """The condition that stands for the options."""
    import json

    parts: list[dict[str, Any]] = []
    for given in where:
        if given.lstrip().startswith("{"):
            try:
                parts.append(json.loads(given))
            except ValueError as error:
                raise typer.BadParameter(f"it is not JSON ({error})", param_hint="--where") from None
            continue
        path, equals, value = given.partition("=")
        if not equals or not path:
            raise typer.BadParameter(f"{given!r} is not PATH=VALUE", param_hint="--where")
        parts.append({"argument_equals": {"path": path.split("."), "value": _value(value)}})
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else {"all": parts}


def _value(given: str) -> Any:
    import json

    try:
        return json.loads(given)
    except ValueError:
        return given


def grant_json(grant: StandingGrant) -> dict[str, Any]:
    """A standing grant as JSON."""
    from runtime.edges.cli.show import rfc3339

    instants = ("granted_at", "expires_at", "revoked_at")
    return {**asdict(grant), **{name: rfc3339(getattr(grant, name)) for name in instants}}
