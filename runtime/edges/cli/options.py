"""The options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _is_text(value: str | None) -> str | None:
    if value is not None and any("\ud800" <= sign <= "\udfff" for sign in value):
        raise typer.BadParameter("it is not valid UTF-8; copy the id from a listing")
    return value


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Workspace = Annotated[
    Path | None, typer.Option("--workspace", help="The workspace file; default: workspace.yaml.")
]
SessionId = Annotated[str, typer.Argument(metavar="SESSION", help="A session id.", callback=_is_text)]
RequestId = Annotated[
    str, typer.Argument(metavar="REQUEST_ID", help="An approval request's id.", callback=_is_text)
]
Limit = Annotated[int, typer.Option(min=1, max=1000, help="Entries on the page.")]
Cursor = Annotated[str | None, typer.Option(callback=_is_text, help="Go on behind this entry.")]
