"""A change to anything that a seal covers is found with a copy of that seal, on both databases."""

import itertools
import threading

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from sqlalchemy import text

from runtime.core.chain import Chain
from runtime.core.export_format import read_seals
from runtime.core.seals import public_key
from runtime.engine.sealing import rotate_key, seal_evidence
from runtime.errors import ConfigurationError, InvalidInput
from runtime.store.evidence import snapshot, verify_session
from runtime.store.journal import add_evidence
from runtime.store.seals import copy_seals, grown_sql, read_heads, verify_sealed
from runtime.store.write import Change
from tests.harness.counting import counting
from tests.harness.forging import erase, forge
from tests.harness.sessions import context

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()


def copied(database, **values):
    """A copy of the seals, as its holder reads it."""
    with snapshot(database) as connection:
        return read_seals([line.encode() for line in copy_seals(connection, **values)])


def host_call(runtime, session_id, name="a", tool="ledger:read"):
    ctx = context(session_id, metadata={"agent_intent": "bookkeeping"})
    assert runtime.execute_tool(tool, {"name": name}, ctx).success


@pytest.fixture
def sealed(runtime):
    """Two sessions under two seals; all is covered."""
    database = runtime.parts.database
    host_call(runtime, "s-1")
    host_call(runtime, "s-1", "long " * 20, tool="ledger:big")
    seal_evidence(database, KEY)
    host_call(runtime, "s-2")
    host_call(runtime, "s-1")
    seal_evidence(database, KEY)
    return database


# --- whole evidence -------------------------------------------------------------------------------


def test_whole_evidence_fits_its_seals_and_the_unsealed_tail_is_counted(sealed, runtime):
    copy = copied(sealed)
    assert [signed.seal.leaves for signed in copy.seals.values()] == [0, 2, 2]
    found = verify_sealed(sealed, copy)
    assert (found.problem, found.seals, found.sessions) == (None, 3, 2)
    assert (found.receipts, found.covered, found.tail) == (8, 8, 0)
    host_call(runtime, "s-2")
    found = verify_sealed(sealed, copy)
    assert (found.problem, found.covered, found.tail) == (None, 8, 2)
    seal_evidence(sealed, KEY)
    found = verify_sealed(sealed, copy)
    assert (found.problem, found.newer, found.tail) == (None, 1, 2), "the copy does not hold the newer seal"
    assert verify_sealed(sealed, copied(sealed)).tail == 0


def test_one_session_is_verified_by_itself(sealed):
    found = verify_sealed(sealed, copied(sealed), "s-2")
    assert (found.problem, found.sessions, found.receipts, found.covered) == (None, 1, 2, 2)


def test_the_last_seal_alone_pins_all_before_it(sealed):
    copy = copied(sealed, after=1, leaves=False)
    assert list(copy.seals) == [2]
    assert verify_sealed(sealed, copy).verified
    forge(sealed, "s-1", leaves=True, worker="somebody else")
    assert verify_sealed(sealed, copy).problem.entry == "seal 1"


# --- what was changed -----------------------------------------------------------------------------


def test_a_recomputed_chain_is_found_with_seals_and_not_without(sealed):
    copy = copied(sealed)
    forge(sealed, "s-1", worker="somebody else")
    assert verify_session(sealed, "s-1").verified
    found = verify_sealed(sealed, copy)
    assert found.session_id == "s-1"
    assert found.problem.entry.endswith("fence 1 n 1 (tool_call_finished)")
    assert "seal 1 covers" in found.problem.reason
    assert verify_sealed(sealed, copy, "s-2").verified


@pytest.mark.parametrize("listed", [True, False])
def test_a_recomputed_chain_is_found_also_where_the_list_of_heads_was_rewritten(sealed, listed):
    copy = copied(sealed, leaves=listed)
    forge(sealed, "s-1", leaves=True, worker="somebody else")
    found = verify_sealed(sealed, copy)
    assert found.problem.entry.endswith("of session s-1") if listed else found.problem.entry == "seal 1"


def test_a_rewritten_row_is_found(sealed):
    with sealed.writing() as connection:
        connection.execute(text("UPDATE step SET output = '{\"wrote\":\"b\"}' WHERE session_id = 's-2'"))
    assert verify_sealed(sealed, copied(sealed)).session_id == "s-2"


def test_a_rewritten_receipt_is_found(sealed):
    with sealed.writing() as connection:
        connection.execute(
            text("UPDATE evidence SET body = replace(body, 'read', 'dear') WHERE session_id = 's-2'")
        )
    found = verify_sealed(sealed, copied(sealed))
    assert (found.session_id, found.problem.reason) == ("s-2", "its hash does not match its body")


def test_a_chain_that_was_cut_off_is_found_although_nothing_cites_its_end(sealed):
    copy = copied(sealed)
    with sealed.writing() as connection:
        connection.execute(text("DELETE FROM evidence WHERE session_id = 's-2' AND n = 1"))
        connection.execute(
            text(
                "UPDATE step SET output = NULL, status = 'running', head = (SELECT hash FROM evidence "
                "WHERE session_id = 's-2') WHERE session_id = 's-2'"
            )
        )
        connection.execute(text("UPDATE node SET head = NULL, result = NULL WHERE session_id = 's-2'"))
    assert verify_session(sealed, "s-2").verified
    found = verify_sealed(sealed, copy)
    assert (found.session_id, found.problem.reason) == ("s-2", "seal 2 covers it, and it is missing")


@pytest.mark.parametrize(("leaves", "entry"), [(False, "fence 1 n 1"), (True, "of session s-2")])
def test_a_deleted_session_is_found(sealed, leaves, entry):
    copy = copied(sealed)
    erase(sealed, "s-2", leaves=leaves)
    assert verify_sealed(sealed, copy).problem.entry.endswith(entry)


def test_a_deleted_session_row_is_found(sealed):
    copy = copied(sealed)
    with sealed.writing() as connection:
        connection.execute(text("DELETE FROM session WHERE id = 's-2'"))
    found = verify_sealed(sealed, copy)
    assert (found.session_id, found.problem.entry) == ("s-2", "session")


def test_a_replaced_seal_table_is_found(sealed):
    copy = copied(sealed)
    with sealed.writing() as connection:
        connection.execute(text("DELETE FROM seal"))
        connection.execute(text("DELETE FROM seal_leaf"))
    assert "does not" in verify_sealed(sealed, copy).problem.reason
    seal_evidence(sealed, OTHER)
    found = verify_sealed(sealed, copy)
    assert found.problem.entry == "seal 0"
    assert "another seal than the copy" in found.problem.reason


@pytest.mark.parametrize(
    ("damage", "entry"),
    [
        (
            "UPDATE seal SET signature = replace(signature, substr(signature, 1, 1), 'x') WHERE number = 1",
            "seal 1",
        ),
        ("UPDATE seal SET body = '{}' WHERE number = 2", "seal 2"),
        ("DELETE FROM seal WHERE number = 1", "seal 2"),
        ("DELETE FROM seal WHERE number = 2", "seal 2"),
        ("DELETE FROM seal_leaf WHERE seal = 2 AND leaf = 1", "seal 2"),
        ("UPDATE seal_leaf SET n = 0 WHERE seal = 1 AND leaf = 0", "seal 1"),
    ],
)
def test_a_damaged_seal_is_named(sealed, damage, entry):
    copy = copied(sealed, after=1, leaves=False)
    with sealed.writing() as connection:
        assert connection.execute(text(damage)).rowcount == 1
    assert verify_sealed(sealed, copy).problem.entry == entry


# --- keys -----------------------------------------------------------------------------------------


def test_seals_rest_on_the_public_keys_that_are_given(sealed):
    copy = copied(sealed)
    assert verify_sealed(sealed, copy, trusted=[public_key(KEY)]).verified
    found = verify_sealed(sealed, copy, trusted=[public_key(OTHER)])
    assert found.problem.entry == "seal 0"
    assert "vouches" in found.problem.reason


def test_the_old_key_introduces_the_new_one_and_no_longer_counts(sealed, runtime):
    signed = rotate_key(sealed, KEY, OTHER)
    assert signed.seal.public_key == public_key(OTHER)
    host_call(runtime, "s-2")
    with pytest.raises(ConfigurationError, match="is the one that counts"):
        seal_evidence(sealed, KEY)
    assert [made.seal.key_id for made in seal_evidence(sealed, OTHER)] == [signed.seal.key_after]
    found = verify_sealed(sealed, copied(sealed), trusted=[public_key(KEY)])
    assert (found.problem, found.seals, found.tail) == (None, 5, 0)


def test_only_the_key_that_counts_introduces_another(sealed):
    for old, new in ((OTHER, KEY), (KEY, KEY)):
        with pytest.raises(ConfigurationError, match="count"):
            rotate_key(sealed, old, new)


@pytest.mark.parametrize("damage", ["body = replace(body, '{', '{ ')", "body = '{'"])
def test_nothing_is_sealed_on_top_of_a_seal_that_was_changed(sealed, runtime, damage):
    with sealed.writing() as connection:
        connection.execute(text(f"UPDATE seal SET {damage} WHERE number = 2"))
    host_call(runtime, "s-2")
    with pytest.raises(InvalidInput, match="seal"):
        seal_evidence(sealed, KEY)


# --- what a seal costs, and what it misses ---------------------------------------------------------

_numbers = itertools.count()


def commit(database, count=1):
    with database.writing() as connection:
        write(connection, count)


def write(connection, count=1):
    for number in itertools.islice(_numbers, count):
        chain, change = Chain(f"step-{number}", 1, []), Change()
        add_evidence(change, "s", [chain.add("tool_call_started", {}), chain.add("tool_call_finished", {})])
        assert change.apply(connection)


def test_a_seal_covers_what_grew_since_the_last_one_and_nothing_else(database):
    commit(database, 40)
    first = seal_evidence(database, KEY)
    commit(database, 3)
    with counting(database) as cost:
        (second,) = seal_evidence(database, KEY)
    assert [made.seal.leaves for made in (*first, second)] == [0, 40, 3]
    assert second.seal.receipts == 6
    commit(database, 3)
    with counting(database) as again:
        seal_evidence(database, KEY)
    assert again.counts == cost.counts
    assert seal_evidence(database, KEY) == []


def test_many_receipts_are_sealed_some_at_a_time(database):
    commit(database, 5)
    made = seal_evidence(database, KEY, limit=4)
    assert [each.seal.receipts for each in made] == [0, 4, 4, 2]


def test_what_grew_is_found_by_the_index_and_not_sorted(database):
    named = {"transaction": 5, "position": 5, "limit": 10}
    explain = "EXPLAIN" if database.dialect == "postgresql" else "EXPLAIN QUERY PLAN"
    with database.writing() as connection:
        if database.dialect == "postgresql":  # an empty table is cheaper to read whole
            connection.execute(text("SET LOCAL enable_seqscan = off"))
            connection.execute(text("SET LOCAL enable_bitmapscan = off"))
        rows = connection.execute(text(f"{explain} {grown_sql(database.dialect).text}"), named)
        plan = "\n".join(str(row) for row in rows)
    assert "ix_evidence_written" in plan
    assert "position>?" in plan or "ROW(transaction_id, " in plan, "the index has to lead to the very place"
    assert "sort" not in plan.lower()
    assert "b-tree" not in plan.lower()


def covered(database):
    with snapshot(database) as connection:
        return sorted(head.step_id for _, head in read_heads(connection, "s", 10_000))


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_what_an_older_transaction_commits_behind_a_seal_is_in_the_next_one(database):
    commit(database)
    with database.writing() as late:
        write(late)
        commit(database)
        seal_evidence(database, KEY)
        assert len(covered(database)) == 1, "what came after the open transaction is held back"
    seal_evidence(database, KEY)
    assert len(covered(database)) == len(set(covered(database))) == 3


@pytest.mark.parametrize("migrated_url", ["postgresql"], indirect=True)
def test_a_place_of_another_server_seals_all_again(database):
    commit(database, 2)
    seal_evidence(database, KEY)
    with database.writing() as connection:
        connection.execute(text("UPDATE seal SET transaction_id = 1000000000000"))
    commit(database)
    (made,) = seal_evidence(database, KEY)
    assert made.seal.leaves == 3


def test_sealing_side_by_side_covers_each_receipt_once_under_one_row_of_numbers(database):
    commit(database, 30)
    barrier, failures = threading.Barrier(3), []

    def work():
        barrier.wait()
        try:
            seal_evidence(database, KEY, limit=7)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    copy = copied(database)
    assert list(copy.seals) == list(range(len(copy.seals)))
    assert sum(signed.seal.receipts for signed in copy.seals.values()) == 60
    assert len(set(covered(database))) == 30
