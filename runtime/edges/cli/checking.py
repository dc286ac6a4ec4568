"""``agent-runtime evidence verify``: a session, all evidence beside a copy of the seals, or an export."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from runtime.core.chain import Problem
    from runtime.core.export_format import SealsCopy


def verify_session(session_id: str, *, as_json: bool) -> None:
    """Verify one session in the database."""
    from runtime.edges.cli.opening import find, open_database
    from runtime.store.evidence import verify_session as verify

    with open_database() as database:
        find(database, session_id)
        found = verify(database, session_id)
    counts = {"receipts": found.receipts, "blobs": found.blobs, "removed": found.removed}
    _tell(f"session {session_id}", {"session_id": session_id}, counts, found.problem, as_json)


def verify_sealed(seals: Path, session_id: str | None, keys: Sequence[str], *, as_json: bool) -> None:
    """Verify one session, or all, and the seal table, beside a copy of the seals."""
    from runtime.edges.cli.opening import find, open_database
    from runtime.errors import SessionNotFound
    from runtime.store import seals as store

    trusted, copy = public_keys(keys), _copy(seals)
    with open_database() as database:
        found = store.verify_sealed(database, copy, session_id, trusted)
        if session_id is not None and found.verified and not found.receipts:
            find(database, session_id)
            raise SessionNotFound(
                f"session {session_id!r} has no evidence; see 'agent-runtime sessions list'"
            )
    counts = {
        "seals": found.seals,
        "newer_seals": found.newer,
        "sessions": found.sessions,
        "receipts": found.receipts,
        "sealed": found.covered,
        "unsealed_tail": found.tail,
        "blobs": found.blobs,
        "removed": found.removed,
    }
    what = "all evidence" if session_id is None else f"session {session_id}"
    _tell(what, {"session_id": found.session_id or session_id}, counts, found.problem, as_json)


def verify_export(file: Path, seals: Path | None, keys: Sequence[str], *, as_json: bool) -> None:
    """Verify an exported file; no database, settings or workspace file are looked at."""
    from runtime.core import export_check
    from runtime.edges.cli.console import note
    from runtime.edges.cli.files import old_file

    trusted = public_keys(keys)
    copy = None if seals is None else _copy(seals)
    with old_file(file) as opened:
        result = export_check.verify_export(opened, copy, trusted)
    found = result.found
    counts = {
        "receipts": found.receipts,
        "blobs": found.blobs,
        "removed": found.removed,
        "seals": result.seals,
        "sealed": result.covered,
        "unsealed_tail": result.tail,
        "later_heads": result.later,
    }
    about = {"session_id": result.session_id, "file": str(file), "vouched": result.vouched}
    if found.problem is None and not result.vouched:
        note(
            "nothing outside the file vouches for it: it is whole in itself, and who wrote it may have made "
            "it all up; give --seals or --public-key"
        )
    if found.problem is None and result.later:
        note(f"the copy of the seals covers {result.later} later heads: the export is older, or was cut off")
    _tell(f"export {file} of session {result.session_id}", about, counts, found.problem, as_json)


def public_keys(given: Sequence[str]) -> list[str]:
    """Public keys as 64 hex digits, or out of files with one in each line.

    Raises:
        InvalidInput: If one is neither.
    """
    import re

    from runtime.edges.cli.files import old_file
    from runtime.errors import InvalidInput

    found: list[str] = []
    for each in given:
        words = [each]
        if not re.fullmatch(r"[0-9a-fA-F]{64}", each):
            with old_file(Path(each)) as file:
                words = file.read(65_536).decode("utf-8", "replace").split()
        for word in words:
            if not re.fullmatch(r"[0-9a-fA-F]{64}", word):
                raise InvalidInput(f"--public-key {each[:60]!r} is no public key; it is 64 hex digits")
            found.append(word.lower())
    return found


def _copy(path: Path) -> SealsCopy:
    from runtime.core.export_format import read_seals
    from runtime.edges.cli.files import old_file
    from runtime.errors import InvalidInput

    with old_file(path) as file:
        try:
            return read_seals(file)
        except InvalidInput as error:
            raise InvalidInput(f"{path}: {error}") from None


def _tell(
    what: str, about: dict[str, Any], counts: dict[str, int], problem: Problem | None, as_json: bool
) -> None:
    """Print what was found, and exit with 1 if something does not fit."""
    from runtime.edges.cli.console import write_json
    from runtime.edges.cli.show import print_lines

    if as_json:
        told = problem and {"entry": problem.entry, "reason": problem.reason}
        write_json({**about, "verified": problem is None, **counts, "problem": told})
    else:
        print_lines(*_lines(what, about, counts, problem))
    if problem is not None:
        raise typer.Exit(1)


def _lines(what: str, about: dict[str, Any], counts: dict[str, int], problem: Problem | None) -> list[str]:
    read = f"{counts['receipts']} receipts and {counts['blobs']} blobs"
    if problem is not None:
        where = f" of session {about['session_id']}" if about.get("session_id") else ""
        return [
            f"{what}: NOT verified",
            f"the first entry that does not fit: {problem.entry}{where}",
            f"because {problem.reason}",
            f"up to there {read} were read",
        ]
    lines = [f"{what}: verified", f"{read}, each recomputed and found whole"]
    if counts["removed"]:
        lines.append(
            f"{counts['removed']} contents were removed by retention, as receipts say; their hashes stay"
        )
    if "unsealed_tail" in counts:
        lines.append(
            f"{counts['sealed']} receipts are covered by {counts['seals']} seals; "
            f"the unsealed tail has {counts['unsealed_tail']}"
        )
    if counts.get("newer_seals"):
        lines.append(f"the database holds {counts['newer_seals']} seals beyond the copy; copy them as well")
    return lines
