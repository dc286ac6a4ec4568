"""Real files: a tool opens what its path scopes name, and no path, link or race leads it elsewhere."""

from __future__ import annotations

import os
import threading

import pytest

from runtime.core.model import PathScope
from runtime.errors import ErrorCode, ToolError
from runtime.tools.context import ToolContext

SCOPES = (
    PathScope(pattern="data/**", access="read"),
    PathScope(pattern="out/**", access="write"),
    PathScope(pattern="both/*", access="read"),
    PathScope(pattern="both/*", access="write"),
)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "workspace"
    for name in ("data/deep", "out", "both", "secret", ".agent-runtime"):
        (root / name).mkdir(parents=True)
    (root / "data/a.txt").write_text("a", encoding="utf-8")
    (root / "data/deep/b.txt").write_text("b", encoding="utf-8")
    (root / "both/c.txt").write_text("c", encoding="utf-8")
    (root / "secret/key.txt").write_text("k", encoding="utf-8")
    (tmp_path / "outside.txt").write_text("o", encoding="utf-8")
    return root


def context(root, *scopes):
    return ToolContext(
        session_id="s",
        node_id="n",
        run_id="r",
        task_id="t",
        call_id="c",
        idempotency_key="k",
        scopes=scopes or SCOPES,
        root=None if root is None else str(root),
    )


def refused(root, path, mode="r", *scopes) -> str:
    with pytest.raises(ToolError) as caught:
        context(root, *scopes).open(path, mode)
    assert caught.value.code == ErrorCode.SCOPE_DENIED
    return str(caught.value)


def test_a_file_that_a_read_scope_names_is_read(root):
    with context(root).open("data/deep/b.txt", encoding="utf-8") as file:
        assert file.read() == "b"


def test_a_path_may_be_a_path_object_and_the_mode_binary(root):
    with context(root).open(root.__class__("data") / "a.txt", "rb") as file:
        assert file.read() == b"a"


@pytest.mark.parametrize("mode", ["w", "a", "x", "wb"])
def test_a_file_that_a_write_scope_names_is_made(root, mode):
    with context(root).open("out/new.txt", mode) as file:
        file.write("n" if "b" not in mode else b"n")
    assert (root / "out/new.txt").read_text() == "n"


def test_a_file_is_cut_off_only_once_it_may_be_written(root):
    refused(root, "data/a.txt", "w")
    assert (root / "data/a.txt").read_text() == "a"
    with context(root).open("both/c.txt", "w"):
        pass
    assert (root / "both/c.txt").read_text() == ""


def test_to_read_and_to_write_are_two_scopes(root):
    assert "no write scope of this call names it" in refused(root, "data/a.txt", "a")
    assert "no read scope of this call names it" in refused(root, "out/new.txt", "r")
    assert "no write scope" in refused(root, "data/a.txt", "r+")
    assert "no read scope" in refused(root, "out/new.txt", "w+")
    assert not (root / "out/new.txt").exists()
    with context(root).open("both/c.txt", "r+") as file:
        assert file.read() == "c"


@pytest.mark.parametrize(
    "path",
    [
        "secret/key.txt",
        "../outside.txt",
        "data/../secret/key.txt",
        "data/../../outside.txt",
        "/etc/passwd",
        "data\\a.txt",
        "data/a.txt\0",
        "data/\ud800",
        "DATA/a.txt",
        ".",
        "",
    ],
)
def test_what_no_scope_names_is_refused_whatever_its_spelling(root, path):
    refused(root, path)


def test_an_absolute_path_is_refused_even_below_the_root(root):
    refused(root, str(root / "data/a.txt"))


def test_a_refusal_names_the_path_the_scopes_and_the_fix(root):
    message = refused(root, "secret/key.txt")
    assert "'secret/key.txt'" in message
    assert "data/**, both/*" in message
    assert "add a scope to the tool" in message


def test_a_link_is_followed_within_the_scopes(root):
    (root / "data/link.txt").symlink_to("deep/b.txt")
    (root / "data/folder").symlink_to("deep")
    for path in ("data/link.txt", "data/folder/b.txt"):
        with context(root).open(path) as file:
            assert file.read() == "b"


@pytest.mark.parametrize("target", ["../secret/key.txt", "../../outside.txt", "/etc/passwd"])
def test_a_link_that_leads_out_of_the_scopes_is_refused(root, target):
    (root / "data/link.txt").symlink_to(target)
    message = refused(root, "data/link.txt")
    assert "leads" in message


def test_a_directory_that_is_a_link_out_of_the_scopes_is_refused(root):
    (root / "data/folder").symlink_to("../secret")
    assert "to which it leads: 'secret/key.txt'" in refused(root, "data/folder/key.txt")


def test_a_dangling_link_creates_nothing_outside(root):
    (root / "out/link.txt").symlink_to("../../made.txt")
    refused(root, "out/link.txt", "w")
    assert not (root.parent / "made.txt").exists()


def test_links_in_a_circle_are_refused(root):
    (root / "data/one").symlink_to("two")
    (root / "data/two").symlink_to("one")
    refused(root, "data/one")


def test_the_root_itself_may_be_reached_by_a_link(root):
    link = root.parent / "link"
    link.symlink_to(root)
    with context(link).open("data/a.txt") as file:
        assert file.read() == "a"


@pytest.mark.parametrize(
    "path",
    [
        ".agent-runtime/x",
        ".Agent-Runtime/x",
        "./.agent-runtime/./x",
        ".agent-runtime./x",
        ".agent\u200c-runtime/x",
        ".ａgent-runtime/x",
        "AGENT-~1/x",
        ".agent-runtime::$INDEX_ALLOCATION/x",
    ],
)
def test_the_state_directory_is_written_by_no_spelling(root, path):
    everything = (
        PathScope(pattern="**", access="write"),
        PathScope(pattern=path, access="write"),
        PathScope(pattern=".*/**", access="write"),
    )
    refused(root, path, "w", *everything)
    assert list((root / ".agent-runtime").iterdir()) == []


def test_a_link_into_the_state_directory_is_not_written_through(root):
    (root / "out/state").symlink_to("../.agent-runtime")
    refused(root, "out/state/x", "w", PathScope(pattern="**", access="write"))
    assert list((root / ".agent-runtime").iterdir()) == []


def test_the_state_directory_is_known_by_its_identity(root):
    """A file system may know it by a name that nobody thought of: here one that is a mere alias."""
    (root / ".agent-runtime").rmdir()
    (root / "out/alias").mkdir()
    (root / ".agent-runtime").symlink_to("out/alias")
    message = refused(root, "out/alias/x", "w")
    assert "which no tool writes to" in message
    assert list((root / "out/alias").iterdir()) == []


def test_only_regular_files_are_opened(root):
    os.mkfifo(root / "data/pipe")
    assert "no regular file" in refused(root, "data/pipe")
    assert "no regular file" in refused(root, "data/deep")


def test_a_missing_file_is_missing(root):
    with pytest.raises(FileNotFoundError):
        context(root).open("data/none.txt")


def test_no_descriptor_is_left_open(root):
    before = set(os.listdir("/dev/fd"))
    with context(root).open("data/deep/b.txt"):
        pass
    refused(root, "data/deep")
    refused(root, "secret/key.txt")
    assert set(os.listdir("/dev/fd")) == before


def test_without_a_root_nothing_is_opened():
    assert "make it with root=" in refused(None, "data/a.txt")


def test_a_race_for_a_directory_never_opens_what_lies_outside(root):
    """A directory and a link out of the scopes take turns under one name while it is opened."""
    (root / "data/turn").mkdir()
    (root / "data/turn/key.txt").write_text("fine", encoding="utf-8")
    (root / "data/away").symlink_to("../secret")
    spare, turn, away = (str(root / "data" / name) for name in ("spare", "turn", "away"))
    done = threading.Event()
    swaps = 0

    def swap():
        nonlocal swaps
        while not done.is_set():
            os.rename(turn, spare)
            os.rename(away, turn)
            os.rename(turn, away)
            os.rename(spare, turn)
            swaps += 1

    thread = threading.Thread(target=swap)
    thread.start()
    seen = set()
    try:
        for _ in range(1000):
            try:
                with context(root).open("data/turn/key.txt") as file:
                    seen.add(file.read())
            except (ToolError, FileNotFoundError, NotADirectoryError) as error:
                seen.add(type(error).__name__)
    finally:
        done.set()
        thread.join()
    assert swaps
    assert "fine" in seen
    assert "k" not in seen
