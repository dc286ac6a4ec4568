"""``agent-runtime evidence``: show, follow, verify and export a session's receipts.

All but ``tail`` need the database alone: no workspace file, no Redis, no tools.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.core.chain import Verification
    from runtime.store.engine import Database
    from runtime.store.evidence import Page, Place

group = typer.Typer(help="Show, follow, verify and export a session's receipts.", no_args_is_help=True)

FORMAT = "agent-runtime/evidence/1"

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
def verify(session_id: options.SessionId, as_json: options.Json = False) -> None:
    """Recompute a session's hashes, links and blobs, and compare its rows; exit 1 if one does not fit."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.store.evidence import verify_session

    with open_database() as database:
        find(database, session_id)
        found = verify_session(database, session_id)
    if as_json:
        problem = found.problem and {"entry": found.problem.entry, "reason": found.problem.reason}
        counts = {"receipts": found.receipts, "blobs": found.blobs}
        write_json({"session_id": session_id, "verified": found.verified, **counts, "problem": problem})
    else:
        _print_verification(session_id, found)
    if not found.verified:
        raise typer.Exit(1)


@group.command()
def export(
    session_id: options.SessionId,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="A new file; default: standard output.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="With --output: print what was written as one JSON document.")
    ] = False,
) -> None:
    """Write a session's receipts and blobs as JSON Lines, each text exactly as it was hashed."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import find, open_database
    from runtime.edges.cli.show import print_lines

    if as_json and output is None:
        raise typer.BadParameter("it needs --output; without, the output is JSON Lines", param_hint="--json")
    with open_database() as database, _opened(database, session_id, output) as file:
        find(database, session_id)
        receipts, blobs = _write_evidence(database, session_id, file)
    if as_json:
        write_json({"session_id": session_id, "file": str(output), "receipts": receipts, "blobs": blobs})
    elif output is not None:
        print_lines(f"{output}: {receipts} receipts, {blobs} blobs of session {session_id}")


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


def _print_verification(session_id: str, found: Verification) -> None:
    from runtime.edges.cli.show import print_lines

    if found.problem is None:
        print_lines(
            f"session {session_id}: verified",
            f"{found.receipts} receipts and {found.blobs} blobs, each recomputed and found whole",
        )
        return
    print_lines(
        f"session {session_id}: NOT verified",
        f"the first entry that does not fit: {found.problem.entry}",
        f"because {found.problem.reason}",
        f"up to there {found.receipts} receipts and {found.blobs} blobs were read",
    )


# --- exporting ------------------------------------------------------------------------------------


@contextmanager
def _opened(database: Database, session_id: str, output: Path | None) -> Iterator[IO[str]]:
    """The file to write, private to its owner; one that could not be finished is removed."""
    import os
    import sys

    from runtime.edges.cli.opening import find
    from runtime.errors import InvalidInput

    find(database, session_id)
    if output is None:
        yield sys.stdout
        sys.stdout.flush()
        return
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise InvalidInput(f"{output} exists; name a new file, or remove it") from None
    except OSError as error:
        raise InvalidInput(f"{output} cannot be written ({error.strerror}); name another file") from error
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="strict") as file:
            yield file
    except BaseException:
        output.unlink(missing_ok=True)
        raise


def _write_evidence(database: Database, session_id: str, file: IO[str]) -> tuple[int, int]:
    """Write a heading, the receipts, the blobs and a closing line with the counts, all of one moment."""
    from runtime.store.evidence import read_blobs, read_receipts, snapshot

    def line(kind_of_line: str, **fields: Any) -> None:
        file.write(json.dumps({"type": kind_of_line, **fields}, ensure_ascii=False) + "\n")

    line("session", format=FORMAT, session_id=session_id)
    receipts = blobs = 0
    with snapshot(database) as connection:
        for each in read_receipts(connection, session_id):
            line(
                "receipt",
                step_id=each.step_id,
                fence=each.fence,
                n=each.n,
                kind=each.kind,
                hash=each.hash,
                body=each.body,
            )
            receipts += 1
        for name, content in read_blobs(connection, session_id):
            line("blob", hash=name, content=content)
            blobs += 1
    line("end", receipts=receipts, blobs=blobs)
    return receipts, blobs
