"""A schedule's row is moved by at most one of those who saw it."""

from runtime.store.schedules import add_schedule, finish_pending, move_schedule, read_schedules


def row(database):
    return read_schedules(database, ["s"])[0]["s"]


def test_only_one_of_two_who_saw_the_same_row_moves_it(database):
    add_schedule(database, "s", "t", now=1, next_at=10)
    seen = row(database)
    assert move_schedule(database, seen, timetable="t", next_at=20, claimed=10)
    assert not move_schedule(database, seen, timetable="t", next_at=30)
    assert (row(database).next_at, row(database).pending_at) == (20, 10)


def test_who_saw_no_claim_cannot_move_a_row_with_one(database):
    add_schedule(database, "s", "t", now=1, next_at=10)
    seen = row(database)
    assert move_schedule(database, seen, timetable="t", next_at=10, claimed=10)
    assert not move_schedule(database, seen, timetable="t", next_at=30, claimed=10)


def test_a_claim_is_finished_once_and_another_one_is_left_alone(database):
    add_schedule(database, "s", "t", now=1, next_at=10)
    assert move_schedule(database, row(database), timetable="t", next_at=20, claimed=10)
    finish_pending(database, "s", 9, "wrong")
    assert (row(database).pending_at, row(database).session_id) == (10, None)
    finish_pending(database, "s", 10, "right")
    assert (row(database).pending_at, row(database).session_id) == (None, "right")


def test_the_first_who_sees_a_schedule_decides_when_it_is_due(database):
    add_schedule(database, "s", "t", now=1, next_at=10)
    add_schedule(database, "s", "t", now=2, next_at=11)
    assert row(database).next_at == 10
