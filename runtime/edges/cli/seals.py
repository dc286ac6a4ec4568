"""``agent-runtime evidence seal`` and what belongs to it: keys, copies of the seals, retention.

Only the process that seals needs the private key; everybody else needs copies of the seals, or public keys.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from runtime.edges.cli import options

KeyFile = Annotated[Path, typer.Argument(metavar="FILE", help="A new file, readable by its owner alone.")]


def seal(as_json: options.Json = False) -> None:
    """Seal all evidence that is not sealed yet, with the key that the settings name."""
    import os

    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import print_lines
    from runtime.engine.sealing import load_key, seal_evidence
    from runtime.settings import Settings

    settings = Settings.load()
    key = load_key(settings, os.environ)
    with open_database(settings) as database:
        made = seal_evidence(database, key)
    if as_json:
        write_json({"seals": [{**each.seal.model_dump(mode="json"), "hash": each.hash} for each in made]})
        return
    for each in made:
        said = each.seal
        gist = (
            f"introduces key {said.key_after}"
            if said.public_key
            else f"covers {said.receipts} receipts of {said.sessions} sessions by {said.leaves} heads"
        )
        print_lines(f"seal {said.number} {gist}; hash {each.hash}")
    if not made:
        print_lines("nothing has come since the last seal")


def seals(
    output: Annotated[
        Path | None, typer.Argument(metavar="[FILE]", help="A new file; default: standard output.")
    ] = None,
    after: Annotated[int, typer.Option(min=-1, help="Only seals behind this number.")] = -1,
    heads: Annotated[
        bool, typer.Option(help="Also the heads that each covers, so that a change can be named.")
    ] = True,
) -> None:
    """Write a copy of the seals as JSON Lines, to be kept where nobody who writes the database can write."""
    from runtime.edges.cli.files import new_file
    from runtime.edges.cli.opening import open_database
    from runtime.store.evidence import snapshot
    from runtime.store.seals import copy_seals

    with open_database() as database, new_file(output) as file, snapshot(database) as connection:
        for line in copy_seals(connection, after, leaves=heads):
            file.write(line)


def keys(as_json: options.Json = False) -> None:
    """List the public keys that seals introduced, the one that counts last."""
    from runtime.core.seals import SignedSeal
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import local, print_table
    from runtime.store.evidence import snapshot
    from runtime.store.seals import read_seals

    with open_database() as database, snapshot(database) as connection:
        stored = [SignedSeal.read(body, signature).seal for _, body, signature in read_seals(connection)]
    found = [each for each in stored if each.public_key is not None]
    if as_json:
        write_json(
            {
                "keys": [
                    {"key_id": s.key_after, "public_key": s.public_key, "seal": s.number, "at": s.at}
                    for s in found
                ]
            }
        )
        return
    print_table(
        ("key", "public key", "since seal", "at"),
        ((s.key_after, s.public_key, str(s.number), local(s.at)) for s in found),
    )


def generate_key(file: KeyFile, as_json: options.Json = False) -> None:
    """Make a private key to seal with, and print its public half."""
    from runtime.core.seals import key_id, public_key
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_lines
    from runtime.engine.sealing import write_key

    public = public_key(write_key(file))
    if as_json:
        write_json({"file": str(file), "key_id": key_id(public), "public_key": public})
    else:
        print_lines(f"{file}: key {key_id(public)}", f"public key {public}")


def rotate_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The new private key.")],
    as_json: options.Json = False,
) -> None:
    """Let a new key count: the one that the settings name signs a seal that introduces it."""
    import os

    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import print_lines
    from runtime.engine import sealing
    from runtime.settings import Settings

    settings = Settings.load()
    old, new = sealing.load_key(settings, os.environ), sealing.read_key(file)
    with open_database(settings) as database:
        made = sealing.rotate_key(database, old, new)
    if as_json:
        write_json({**made.seal.model_dump(mode="json"), "hash": made.hash})
        return
    print_lines(
        f"seal {made.seal.number} introduces key {made.seal.key_after}, signed with {made.seal.key_id}",
        f"from now on seal with {file}",
    )


def retain(
    older_than: Annotated[str, typer.Option(help="How long ago a session ended, such as 90d.")],
    reason: Annotated[str, typer.Option(help="Why, for people; it is kept.")] = "retention",
    as_json: options.Json = False,
) -> None:
    """Remove stored contents of sessions that ended long ago; receipts, hashes and proofs stay."""
    from runtime.core.durations import milliseconds, read_duration, write_duration
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.opening import open_database
    from runtime.edges.cli.show import print_lines
    from runtime.store.retention import remove_contents

    try:
        span = read_duration(older_than)
    except ValueError as error:
        raise typer.BadParameter(f"{older_than!r} {error}", param_hint="--older-than") from None
    with open_database() as database:
        done = remove_contents(database, milliseconds(span), f"{reason} (older than {write_duration(span)})")
    if as_json:
        write_json({"sessions": done.sessions, "contents": done.contents, "damaged": done.damaged})
        return
    print_lines(f"removed {done.contents} contents of {done.sessions} sessions; their hashes stay")
    if done.damaged:
        print_lines(
            f"{done.damaged} sessions were left alone, because receipts of theirs are damaged; "
            "'agent-runtime evidence verify' names them"
        )
