"""How commands show values: instants, foreign text and tables for people; plain values for JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

NOTHING = "–"
WIDTH = 1000
"""Tables take the width that they need, so that ids can be copied whole and cut by other programs."""


def rfc3339(milliseconds: int | None) -> str | None:
    """An instant for JSON, in UTC."""
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def local(milliseconds: int | None) -> str:
    """An instant for people, in their own time zone."""
    if milliseconds is None:
        return NOTHING
    return datetime.fromtimestamp(milliseconds / 1000, UTC).astimezone().isoformat(timespec="seconds")


def printable(value: object) -> str:
    """Text as it is, but with the characters escaped that a terminal would obey instead of show."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


def one_line(value: Any, limit: int = 80) -> str:
    """JSON in one line, cut to ``limit`` characters."""
    text = printable(json.dumps(value, ensure_ascii=False))
    return text if len(text) <= limit else text[: limit - 1] + "…"


def print_lines(*lines: object) -> None:
    """Print lines of text for people."""
    for line in lines:
        sys.stdout.write(printable(line) + "\n")
    sys.stdout.flush()


def print_json_block(value: Any) -> None:
    """Print indented JSON for people."""
    print_lines(*json.dumps(value, ensure_ascii=False, indent=2).split("\n"))


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows under their column names; ``None`` is shown as a dash."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for row in rows:
        table.add_row(*(Text(NOTHING if cell is None else printable(cell)) for cell in row))
    Console(width=WIDTH, highlight=False).print(table)
