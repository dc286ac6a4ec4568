"""Every pair of a state and an event either moves or is refused."""

from itertools import product

import pytest

from runtime.core.lifecycle import (
    STEP_ENDED,
    STEP_TRANSITIONS,
    StepEvent,
    step_after,
    steps_that_accept,
)
from runtime.core.model import StepStatus


@pytest.mark.parametrize(("status", "event"), list(product(StepStatus, StepEvent)))
def test_a_pair_moves_to_a_state_or_is_refused(status, event):
    after = step_after(status, event)
    assert (after is None) == ((status, event) not in STEP_TRANSITIONS)
    assert (status in steps_that_accept(event)) == (after is not None)


@pytest.mark.parametrize(("status", "event"), list(product(sorted(STEP_ENDED), StepEvent)))
def test_only_a_resume_leaves_an_end(status, event):
    if event is not StepEvent.RESUME:
        assert step_after(status, event) is None


def test_nothing_but_a_start_or_a_takeover_leads_to_running():
    events = {event for (_, event), after in STEP_TRANSITIONS.items() if after is StepStatus.RUNNING}
    assert events == {StepEvent.START, StepEvent.TAKE_OVER}


def test_every_state_but_the_first_can_be_reached():
    assert set(StepStatus) - {StepStatus.PENDING} == set(STEP_TRANSITIONS.values())
