"""``agent-runtime evidence``: show, follow, verify, export and seal receipts.

All but ``tail`` need the database alone: no workspace file, no Redis, no tools.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options
from runtime.edges.cli import seals as sealing

if TYPE_CHECKING:
    from runtime.store.engine import Database
    from runtime.store.evidence import Page, Place

group = typer.Typer(help="Show, follow, verify, export and seal receipts.", no_args_is_help=True)

PATIENCE_SECONDS = 1.0
"""How long ``show`` waits for receipts that older transactions, still open, hold back."""


@group.command()
def show(
    session_id: options.SessionId,
    limit: options.Limit = 100,
    after: options.Cursor = None,
    as_json: options.Json = False,
) -> None:
    """List a session's receipts, oldest first; --after takes the cursor of an entry."""
    from runtime.edges.cli.console import note, write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import print_table

    with open_database() as database:
        find(database, session_id)
        found = _settled(database, session_id, after, limit + 1)
    entries = [_entry(stored.receipt) for stored in found.receipts[:limit]]
    more = found.held or len(found.receipts) > limit
    following = (entries[-1]["cursor"] if entries else after or "") if more else None
    if as_json:
        write_json({"session_id": session_id, "receipts": entries, "next": following})
        return
    print_table(
        ("at", "node", "tool", "what", "hash", "cursor"),
        ((*_told(entry["kind"], entry["body"]), entry["hash"][:16], entry["cursor"]) for entry in entries),
    )
    if following:
        note(f"there are more: --after {following}")
    elif following is not None:
        note("there are more, but transactions that began before them are still open; ask again")


@group.command()
def tail(
    session_id: options.SessionId,
    after: options.Cursor = None,
    timeout: Annotated[
        float | None, typer.Option(min=0, help="End after so many seconds without an entry.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON Lines: one document per entry, as it comes.")
    ] = False,
) -> None:
    """Follow a session live until it ends; --after takes the cursor of the last entry that was seen."""
    from runtime.edges.cli.console import note
    from runtime.edges.cli.opening import find, open_database, open_runtime
    from runtime.engine.handle import SessionHandle

    with open_database() as database:
        find(database, session_id)
    try:
        with open_runtime() as runtime:
            for event in SessionHandle(runtime.parts, session_id).events(after, timeout):
                _print_event(event, as_json)
    except KeyboardInterrupt:
        note("stopped; the session goes on")
        raise typer.Exit(130) from None


@group.command()
def verify(
    session_id: Annotated[
        str | None,
        typer.Argument(
            metavar="[SESSION]", help="A session id; with --seals: default all.", callback=options._is_text
        ),
    ] = None,
    seals: Annotated[
        Path | None, typer.Option("--seals", help="A copy of the seals that was kept elsewhere.")
    ] = None,
    export: Annotated[
        Path | None, typer.Option("--export", help="Verify this exported file instead; needs no database.")
    ] = None,
    public_key: Annotated[
        list[str] | None,
        typer.Option(
            "--public-key", help="A key that seals must rest on: 64 hex digits, or a file with them."
        ),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Recompute hashes, links and blobs, compare rows and what seals cover; exit 1 if one does not fit."""
    from runtime.edges.cli import checking

    if export is not None:
        if session_id is not None:
            raise typer.BadParameter(
                "the file says whose evidence it is; leave SESSION out", param_hint="--export"
            )
        checking.verify_export(export, seals, public_key or [], as_json=as_json)
    elif seals is not None:
        checking.verify_sealed(seals, session_id, public_key or [], as_json=as_json)
    elif public_key:
        raise typer.BadParameter("it needs --seals or --export", param_hint="--public-key")
    elif session_id is None:
        raise typer.BadParameter("name a session, or give --seals or --export", param_hint="SESSION")
    else:
        checking.verify_session(session_id, as_json=as_json)


@group.command()
def export(
    session_id: options.SessionId,
    file: Annotated[Path | None, typer.Argument(metavar="[FILE]", help="The same as --output.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; default: standard output.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With a file: print what was written as one JSON document.")
    ] = False,
) -> None:
    """Write receipts, blobs, and seals with proofs as JSON Lines, each text exactly as it was hashed."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.files import new_file
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import print_lines
    from runtime.store.evidence import snapshot
    from runtime.store.exported import write_export

    output = output or file
    if as_json and output is None:
        raise typer.BadParameter("it needs a file; without, the output is JSON Lines", param_hint="--json")
    with open_database() as database:
        find(database, session_id)
        with new_file(output) as opened, snapshot(database) as connection:
            end = write_export(connection, session_id, opened.write)
    if as_json:
        counts = end.model_dump(mode="json", exclude={"type"})
        write_json({"session_id": session_id, "file": str(output), **counts})
    elif output is not None:
        print_lines(
            f"{output}: {end.receipts} receipts, {end.blobs} blobs and {end.proofs} proofs "
            f"of session {session_id}"
        )


group.command("seal")(sealing.seal)
group.command("seals")(sealing.seals)
group.command("keys")(sealing.keys)
group.command("generate-key")(sealing.generate_key)
group.command("rotate-key")(sealing.rotate_key)
group.command("retain")(sealing.retain)


# --- reading --------------------------------------------------------------------------------------


def _settled(database: Database, session_id: str, after: str | None, limit: int) -> Page:
    """A page of receipts; what is held back is given a moment, so that an ended session shows its end."""
    from runtime.store.evidence import START, read_page

    place = _place(database, session_id, after) if after else START
    until = time.monotonic() + PATIENCE_SECONDS
    while True:
        page = read_page(database, session_id, place, limit)
        if not page.held or time.monotonic() > until:
            return page
        time.sleep(0.02)


def _place(database: Database, session_id: str, cursor: str) -> Place:
    from runtime.errors import InvalidInput
    from runtime.store.evidence import place_of

    step_id, *numbers = cursor.rsplit("/", 2)
    fits = len(numbers) == 2 and all(
        number.isascii() and number.isdigit() and len(number) < 10 for number in numbers
    )
    place = place_of(database, session_id, step_id, *map(int, numbers)) if fits else None
    if place is None:
        raise InvalidInput(
            f"--after {cursor[:60]!r} is no entry of session {session_id!r}; give the cursor of one, as "
            "'agent-runtime evidence show' prints it"
        )
    return place


def _entry(receipt: Any) -> dict[str, Any]:
    try:
        body = json.loads(receipt.body)
    except ValueError:
        body = None
    return {
        "cursor": f"{receipt.step_id}/{receipt.fence}/{receipt.n}",
        "kind": receipt.kind,
        "hash": receipt.hash,
        "body": body,
    }


# --- printing -------------------------------------------------------------------------------------


def _told(kind: str, body: Any) -> tuple[str, str | None, str | None, str]:
    """When, where, which tool, and the gist in words."""
    from runtime.edges.cli.show import local

    fields = body if isinstance(body, dict) else {}
    what = kind.removeprefix("tool_call_").replace("_", " ")
    said = [fields[name] for name in ("result", "status", "reason") if isinstance(fields.get(name), str)]
    if isinstance(fields.get("duration_ms"), int):
        said.append(f"in {fields['duration_ms']} ms")
    at = fields.get("at")
    gist = f"{what}: {' '.join(said)}" if said else what
    return (
        local(at if isinstance(at, int) else None),
        fields.get("node_id"),
        fields.get("tool_name"),
        gist if body is not None else f"{what}: its body is damaged",
    )


def _print_event(event: Any, as_json: bool) -> None:
    import sys

    from runtime.edges.cli.show import NOTHING, print_lines

    if as_json:
        document = {
            "cursor": event.cursor,
            "kind": event.kind,
            "node_id": event.node_id,
            "tool_name": event.tool_name,
            "live": event.live,
            "hash": event.hash,
            "body": event.body,
        }
        sys.stdout.write(json.dumps(document, ensure_ascii=False) + "\n")
        sys.stdout.flush()
        return
    at, node, tool, gist = _told(event.kind, event.body)
    print_lines(f"{at:<25}  {node or event.node_id or 'session':<20}  {tool or NOTHING:<28}  {gist}")
