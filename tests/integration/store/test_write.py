"""Guarded changes are all or nothing, on both databases."""

import pytest
from sqlalchemy import text

from runtime.store.journal import apply
from runtime.store.tables import BlobRow, StepRow
from runtime.store.write import Change, update_rows
from tests.harness.rows import insert_step


def blobs(database):
    with database.reading() as connection:
        return [row[0] for row in connection.execute(text("SELECT content FROM blob ORDER BY content"))]


def blob(content):
    return {"session_id": "s", "hash": content, "content": content}


def test_a_change_without_guards_inserts(database):
    change = Change()
    change.insert(BlobRow, [blob("a"), blob("b")])
    assert apply(database, change)
    assert blobs(database) == ["a", "b"]


def test_a_guard_that_finds_nothing_leaves_everything_as_it_was(database):
    insert_step(database, "one")
    change = Change()
    change.guard("UPDATE step SET status = 'failed' WHERE id = :id", id="one")
    change.guard("UPDATE step SET status = 'failed' WHERE id = :id", id="absent")
    change.insert(BlobRow, [blob("a")])
    assert not apply(database, change)
    assert blobs(database) == []
    with database.reading() as connection:
        assert connection.execute(text("SELECT status FROM step")).scalar_one() == "ready"


def test_a_guard_that_holds_lets_updates_and_inserts_through(database):
    insert_step(database, "one")
    change = Change()
    change.guard("UPDATE step SET fence = :fence WHERE id = :id", id="one", fence=7)
    change.update("UPDATE step SET reason = :why WHERE id = :id", id="absent", why="nothing")
    change.insert(BlobRow, [blob("a")])
    assert apply(database, change)
    assert blobs(database) == ["a"]


def test_rows_that_exist_are_left_alone_only_when_asked(database):
    for _ in range(2):
        change = Change()
        change.insert(BlobRow, [blob("a")], once=True)
        assert apply(database, change)
    assert blobs(database) == ["a"]
    again = Change()
    again.insert(BlobRow, [blob("a")])
    with pytest.raises(Exception, match=r"(?i)unique"):
        apply(database, again)


@pytest.mark.parametrize("nasty", ["quote ' \" \\", "colon :name %s {x}", "\\u0000 escaped", "ünïcode 🎉"])
def test_any_text_survives(database, nasty):
    change = Change()
    change.insert(BlobRow, [{"session_id": "s", "hash": "h", "content": nasty}])
    assert apply(database, change)
    assert blobs(database) == [nasty]


def test_updating_many_rows_leaves_what_is_none_as_it_is(database):
    insert_step(database, "one", reason="kept")
    insert_step(database, "two", reason="kept")
    with database.writing() as connection:
        changed = update_rows(
            connection,
            StepRow,
            "id",
            [
                {"id": "one", "status": "failed", "propagated": False, "due_at": 5},
                {"id": "two", "status": None, "propagated": None, "due_at": None},
            ],
        )
    assert changed == 2
    with database.reading() as connection:
        rows = connection.execute(
            text("SELECT id, status, propagated, reason, due_at FROM step ORDER BY id")
        ).all()
    assert [(r.id, r.status, bool(r.propagated), r.reason, r.due_at) for r in rows] == [
        ("one", "failed", False, "kept", 5),
        ("two", "ready", True, "kept", 0),
    ]
