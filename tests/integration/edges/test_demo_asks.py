"""The demo asks a person who sits at a terminal, and takes no silence for a yes."""

import os
import pty
import sys
from contextlib import suppress
from types import SimpleNamespace

import pytest
from rich.console import Console

from runtime.edges.cli.demo import _decider

REQUEST = SimpleNamespace(tool_name="calendar:delete-event", input={"event_id": "planning"})


@pytest.fixture
def terminal(monkeypatch):
    """A real terminal as standard input and as the console; yields what a person types on and reads from."""
    person, process = pty.openpty()
    with os.fdopen(process, "r+b", buffering=0) as raw, open(process, "w", closefd=False) as shown:
        with open(process, closefd=False) as typed:
            monkeypatch.setattr(sys, "stdin", typed)
            yield person, Console(file=shown, highlight=False)
        assert raw.isatty()
    os.close(person)


def shown(terminal):
    """All that the person sees."""
    person, console = terminal
    console.file.flush()
    os.set_blocking(person, False)
    said = b""
    with suppress(BlockingIOError):
        while chunk := os.read(person, 4096):
            said += chunk
    return said.decode()


@pytest.mark.parametrize(("typed", "approved"), [("y", True), ("n", False), ("", False), ("maybe\ny", True)])
def test_the_answer_is_what_was_typed_and_return_alone_is_no(terminal, typed, approved):
    person, console = terminal
    os.write(person, f"{typed}\n".encode())
    assert _decider(console, None)(REQUEST) is approved
    said = shown(terminal)
    assert "approval wanted" in said
    assert "calendar:delete-event" in said
    assert "Approve this exact call?" in said
    assert ("approved" if approved else "denied") in said.splitlines()[-1]


@pytest.mark.parametrize("flag", [True, False])
def test_a_flag_answers_and_nobody_is_asked(terminal, flag):
    _, console = terminal
    assert _decider(console, flag)(REQUEST) is flag
    assert "Approve this exact call?" not in shown(terminal)
