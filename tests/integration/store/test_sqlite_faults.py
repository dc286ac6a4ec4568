"""A SQLite file that is full or damaged is an outage of the store, however statements are run."""

import sqlite3

import pytest
from sqlalchemy import text

from runtime.errors import StoreUnavailable
from runtime.store.engine import Database
from runtime.store.sql import read, write
from runtime.store.steps import load_transcript

pytestmark = pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)

_MESSAGE = "INSERT INTO message (node_uid, number, role, content) VALUES ('n', :number, 'user', :content)"


def say(database: Database, count: int, *, no_room: bool = False) -> None:
    with database.writing() as connection:
        if no_room:
            ((pages,),) = read(connection, "PRAGMA page_count", {})
            read(connection, f"PRAGMA max_page_count = {pages}", {})
        for number in range(count):
            write(connection, _MESSAGE, {"number": number, "content": "y" * 3000})


def test_a_full_disk_is_an_outage_although_sqlite_has_rolled_back_by_itself(database):
    with pytest.raises(StoreUnavailable, match="full"):
        say(database, 2_000, no_room=True)
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM message")).scalar_one() == 0


def test_a_damaged_page_is_an_outage_also_where_rows_are_fetched(database, tmp_path):
    say(database, 400)
    database.close()
    path = tmp_path / "runtime.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((size,),) = connection.execute("PRAGMA page_size").fetchall()
    connection.close()
    data = bytearray(path.read_bytes())
    page = data.rfind(b"y" * 3000) // size
    data[page * size : (page + 1) * size] = b"\xff" * size
    path.write_bytes(data)
    with pytest.raises(StoreUnavailable, match="malformed"):
        load_transcript(database, "n", 1_000)
