"""When schedules are due, where clocks change as well, and what becomes of each due time."""

from datetime import datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.timetable import (
    Choice,
    Overlap,
    Timetable,
    check_cron,
    choose,
    delay,
    must_wait,
    session_id_of,
)

BERLIN = ZoneInfo("Europe/Berlin")
MINUTE = 60_000


def ms(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def due(cron: str, after: str, until: str, zone=BERLIN) -> list[str]:
    """Due times as the clocks of the zone show them."""
    found = Timetable(cron, zone).between(ms(after), ms(until))
    return [datetime.fromtimestamp(each / 1000, zone).isoformat(timespec="minutes") for each in found]


# --- expressions ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cron", ["* * * * *", "0 6 * * MON-FRI", "*/15 8-18 * * 1-5", "0 0 L * *", "0 9 * * 1#2"]
)
def test_five_fields_as_crontabs_have_them_are_accepted(cron):
    check_cron(cron)


@pytest.mark.parametrize(
    ("cron", "says"),
    [
        ("0 6 * *", "is not five fields"),
        ("0 0 6 * * 1", "is not five fields"),
        ("@daily", "is not five fields"),
        ("61 * * * *", "bad minute"),
        ("0 24 * * *", "bad hour"),
        ("0 0 30 2 *", "bad day-of-month"),
        ("0 0 * * someday", "bad day-of-week"),
        ("0 0 */20 * 1L", "is never due"),
    ],
)
def test_what_cannot_be_read_or_is_never_due_is_refused_with_the_value_and_a_fix(cron, says):
    with pytest.raises(ValueError, match=says) as caught:
        check_cron(cron)
    assert repr(cron) in str(caught.value)
    assert "— write e.g." in str(caught.value)


# --- due times ------------------------------------------------------------------------------------


def test_due_times_lie_behind_the_first_instant_and_not_behind_the_last():
    assert due("*/30 * * * *", "2026-03-13T09:00Z", "2026-03-13T10:00Z", ZoneInfo("UTC")) == [
        "2026-03-13T09:30+00:00",
        "2026-03-13T10:00+00:00",
    ]


def test_fields_are_read_in_the_zone():
    assert due("0 9 * * 5", "2026-03-12T00:00Z", "2026-03-14T00:00Z") == ["2026-03-13T09:00+01:00"]


def test_a_time_of_day_that_a_spring_day_lacks_is_due_once_when_the_clock_has_jumped():
    assert due("0,30 2 * * *", "2026-03-28T12:00Z", "2026-03-30T12:00Z") == [
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_a_time_of_day_that_an_autumn_day_has_twice_is_due_the_first_time():
    assert due("30 2 * * *", "2026-10-24T12:00Z", "2026-10-26T12:00Z") == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]


def test_nothing_that_was_due_comes_again_when_the_timetable_is_asked_within_the_second_hour():
    assert due("30 2 * * *", "2026-10-25T01:10Z", "2026-10-26T12:00Z") == ["2026-10-26T02:30+01:00"]


def test_what_is_due_every_hour_is_due_in_both_hours_of_autumn_and_skips_none_in_spring():
    assert due("0 * * * *", "2026-10-24T23:30Z", "2026-10-25T02:30Z") == [
        "2026-10-25T02:00+02:00",
        "2026-10-25T02:00+01:00",
        "2026-10-25T03:00+01:00",
    ]
    assert due("0 * * * *", "2026-03-28T23:30Z", "2026-03-29T01:30Z") == [
        "2026-03-29T01:00+01:00",
        "2026-03-29T03:00+02:00",
    ]


def test_a_day_of_the_week_and_a_day_of_the_month_are_alternatives():
    assert due("0 0 15 * 1", "2026-03-09T12:00Z", "2026-03-16T12:00Z", ZoneInfo("UTC")) == [
        "2026-03-15T00:00+00:00",
        "2026-03-16T00:00+00:00",
    ]


@given(
    st.sampled_from(
        ["*/7 * * * *", "30 2 * * *", "0 0 * * 0", "15 1-4 * * *", "0 */5 * * *", "59 23 28-31 * *"]
    ),
    st.sampled_from(["Europe/Berlin", "America/St_Johns", "Australia/Lord_Howe", "Africa/Cairo", "UTC"]),
    st.integers(ms("2020-01-01T00:00Z"), ms("2035-01-01T00:00Z")),
    st.integers(0, 400 * 24 * 60 * MINUTE),
)
def test_the_next_due_time_lies_ahead_and_does_not_depend_on_who_asks_before_it(cron, zone, instant, ahead):
    table = Timetable(cron, ZoneInfo(zone))
    found = table.next_after(instant)
    assert found > instant
    assert found % MINUTE == 0
    between = instant + ahead % (found - instant)
    assert table.next_after(between) == found


@given(st.integers(ms("2026-03-27T00:00Z"), ms("2026-03-30T00:00Z")), st.integers(0, 23), st.integers(0, 59))
def test_a_daily_time_is_due_once_on_each_day_of_the_change_in_spring(after, hour, minute):
    dates = [
        datetime.fromtimestamp(each / 1000, BERLIN).date()
        for each in Timetable(f"{minute} {hour} * * *", BERLIN).between(after, after + 4 * 24 * 60 * MINUTE)
    ]
    assert len(set(dates)) == len(dates)
    assert all(later - earlier == timedelta(days=1) for earlier, later in pairwise(dates))


# --- jitter ---------------------------------------------------------------------------------------


@given(st.text(min_size=1, max_size=20), st.integers(0, 2**42), st.integers(1, 10**8))
def test_the_delay_of_a_due_time_is_the_same_for_all_and_below_its_bound(name, at, bound):
    assert 0 <= delay(name, at, bound) < bound
    assert delay(name, at, bound) == delay(name, at, bound)


def test_delays_differ_among_schedules_and_due_times_and_fill_their_range():
    names = {delay(f"s{number}", 0, 1000) for number in range(500)}
    times = {delay("s", number * MINUTE, 1000) for number in range(500)}
    for found in (names, times):
        assert len(found) > 300
        assert min(found) < 50
        assert max(found) > 950


def test_without_jitter_nothing_is_put_off():
    assert delay("s", 1, 0) == 0


# --- what becomes of a due time -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("late", "overlap", "busy", "waits", "choice"),
    [
        (0, "skip", False, False, Choice.CLAIM),
        (1000, "skip", False, False, Choice.CLAIM),
        (1001, "skip", False, False, Choice.MISSED),
        (0, "skip", True, False, Choice.BUSY),
        (0, "queue", True, False, Choice.CLAIM),
        (0, "queue", True, True, Choice.TAKEN),
        (1001, "queue", True, True, Choice.MISSED),
        (0, "replace", True, False, Choice.CLAIM),
    ],
)
def test_lateness_then_who_waits_then_the_policy_decide(late, overlap, busy, waits, choice):
    found = choose(late=late, catch_up=1000, overlap=Overlap(overlap), busy=busy, waits=waits)
    assert found is choice


def test_only_a_queued_due_time_waits_for_the_last_session():
    waiting = [
        (overlap, busy) for overlap in Overlap for busy in (True, False) if must_wait(overlap, busy=busy)
    ]
    assert waiting == [(Overlap.QUEUE, True)]


def test_a_session_is_named_after_its_schedule_and_due_time():
    assert session_id_of("weekly-report", ms("2026-03-13T09:00Z")) == "weekly-report@2026-03-13T09:00:00Z"
