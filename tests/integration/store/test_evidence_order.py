"""Followers page by an order that no later commit can change, on both databases."""

import threading

import pytest
from sqlalchemy import text

from runtime.core.chain import Chain
from runtime.store.evidence import START, Place, page_sql, place_of, read_page, read_receipts, snapshot
from runtime.store.journal import add_evidence
from runtime.store.write import Change


def write(connection, step_id, session_id="s", count=1):
    """Write the first receipts of a step in an open transaction."""
    chain, change = Chain(step_id, 1, []), Change()
    add_evidence(change, session_id, [chain.add("tool_call_started", {}) for _ in range(count)])
    assert change.apply(connection)


def commit(database, step_id, session_id="s", count=1):
    with database.writing() as connection:
        write(connection, step_id, session_id, count)


class Follower:
    """Reads page after page from the place of the last receipt it saw."""

    def __init__(self, database, limit=500):
        self.database, self.limit = database, limit
        self.place, self.seen = START, []

    def read(self):
        page = read_page(self.database, "s", self.place, self.limit)
        for stored in page.receipts:
            self.place = stored.place
            self.seen.append(stored.receipt.step_id)
        return page


only_postgresql = pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)


@only_postgresql
def test_what_commits_in_reverse_order_is_read_in_one_order_without_loss_or_repeat(database):
    follower = Follower(database)
    commit(database, "before")
    with database.writing() as first:
        write(first, "first")
        with database.writing() as second:
            write(second, "second")
        page = follower.read()
        assert (follower.seen, page.held) == (["before"], True), "the second must not be passed to yet"
    page = follower.read()
    assert (follower.seen, page.held) == (["before", "first", "second"], False)
    assert follower.read().receipts == []


@only_postgresql
def test_what_is_held_back_comes_after_a_transaction_that_rolls_back_too(database):
    follower = Follower(database)

    def work():
        with database.writing() as first:
            write(first, "first")
            commit(database, "second")
            assert follower.read().held
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not follower.read().held
    assert follower.seen == ["second"]


@only_postgresql
def test_a_transaction_that_took_its_position_late_is_not_missed(database):
    follower = Follower(database)
    with database.writing() as first:
        first.execute(text("SELECT pg_current_xact_id()"))
        commit(database, "second")
        follower.read()
        write(first, "first")
    follower.read()
    assert sorted(follower.seen) == ["first", "second"]
    again = Follower(database)
    again.read()
    assert again.seen == follower.seen, "every follower sees the same order"


@only_postgresql
def test_rows_of_a_restored_dump_are_not_held_back_for_ever(database):
    commit(database, "old")
    with database.writing() as connection:
        connection.execute(text("UPDATE evidence SET transaction_id = 1000000000000"))
    page = Follower(database).read()
    assert (len(page.receipts), page.held) == (1, False)


@pytest.mark.parametrize("migrated_url", ["sqlite"], indirect=True)
def test_sqlite_writers_are_serialised_so_nothing_is_held_back(database):
    follower = Follower(database)
    with database.writing() as first:
        write(first, "first")
        assert follower.read().receipts == []
    commit(database, "second")
    assert not follower.read().held
    assert follower.seen == ["first", "second"]


def test_many_writers_side_by_side_lose_and_repeat_nothing(database):
    writers, each = 4, 15
    follower, barrier = Follower(database, limit=7), threading.Barrier(writers)

    def work(number):
        barrier.wait()
        for k in range(each):
            commit(database, f"{number}-{k}", count=2)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(writers)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        follower.read()
    while follower.read().receipts:
        pass
    expected = sorted(f"{number}-{k}" for number in range(writers) for k in range(each) for _ in range(2))
    assert sorted(follower.seen) == expected


def test_receipts_of_one_transaction_keep_their_order(database):
    commit(database, "one", count=5)
    found = read_page(database, "s").receipts
    assert [stored.receipt.n for stored in found] == [0, 1, 2, 3, 4]
    assert found == sorted(found, key=lambda stored: stored.place)


def test_the_place_of_a_receipt_is_found_by_its_name(database):
    commit(database, "one", count=2)
    assert place_of(database, "s", "one", 1, 1) == read_page(database, "s").receipts[1].place
    assert place_of(database, "s", "one", 1, 2) is None
    assert place_of(database, "other", "one", 1, 1) is None


def test_a_snapshot_sees_one_moment_however_long_it_reads(database):
    commit(database, "one")
    with snapshot(database) as connection:
        assert len(list(read_receipts(connection, "s"))) == 1
        commit(database, "two")
        assert len(list(read_receipts(connection, "s"))) == 1
    with snapshot(database) as connection:
        assert len(list(read_receipts(connection, "s"))) == 2


def test_a_page_is_found_by_the_index_and_not_sorted(database):
    named = {"id": "s", "transaction": 5, "position": 5, "limit": 10}
    explain = "EXPLAIN" if database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    with database.writing() as connection:
        if database.dialect == "postgresql":  # an empty table is cheaper to read whole
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        rows = connection.execute(text(f"{explain} {page_sql(database.dialect).text}"), named)
        plan = "\n".join(str(row) for row in rows)
    assert "ix_evidence_session" in plan
    assert "position>?" in plan or "ROW(transaction_id, " in plan, "the index has to lead to the very place"
    assert "sort" not in plan.lower()
    assert "b-tree" not in plan.lower()


@only_postgresql
def test_a_page_of_a_session_that_is_most_of_all_evidence_does_not_go_through_the_rest(database):
    commit(database, "long", count=3000)
    commit(database, "other", session_id="t", count=300)
    last = read_page(database, "s", limit=3000).receipts[-1].place
    named = {"id": "s", "transaction": last.transaction_id, "position": last.position, "limit": 100}
    with database.reading() as connection:
        connection.execute(text("ANALYZE evidence"))
        rows = connection.execute(text(f"EXPLAIN (ANALYZE) {page_sql(database.dialect).text}"), named)
        plan = "\n".join(row[0] for row in rows)
    assert "ix_evidence_session" in plan, plan
    assert "Rows Removed" not in plan


def test_places_are_ordered_by_transaction_then_position():
    assert START < Place(0, 1) < Place(1, 0) < Place(1, 1)
