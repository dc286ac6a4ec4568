"""Who may answer, and when an answer decides, is one pure function of the rule and the votes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.quorum import AUTHENTICATED, Ballot, Requirement, Vote, fits_tool

ANN, BOB, CAT = "ann", "bob", "cat"


def vote(who, approved=True, by="http-auth", digest="d"):
    return Vote(who, by, approved, digest)


def refused(requirement, given, asked_for=CAT, **values):
    refusal = Ballot(requirement, asked_for, **values).refusal(given)
    return refusal and refusal.code


def test_without_a_rule_anybody_who_says_a_name_may_answer():
    assert refused(Requirement(), vote(ANN, by="asserted")) is None
    assert Ballot(Requirement(), None).completed_by(vote(ANN, by="asserted"))


@pytest.mark.parametrize(
    "requirement",
    [Requirement(quorum=2), Requirement(approvers=frozenset({ANN})), Requirement(separation_of_duty=True)],
)
def test_a_rule_counts_authenticated_people_only(requirement):
    assert refused(requirement, vote(ANN, by="asserted")) == "not_authenticated"
    assert [refused(requirement, vote(ANN, by=by)) for by in sorted(AUTHENTICATED)] == [None, None]


def test_only_approvers_answer_and_the_second_group_only_after_the_escalation():
    rule = Requirement(approvers=frozenset({ANN}), escalate_to=frozenset({BOB}), escalate_after_ms=1)
    assert refused(rule, vote(BOB)) == "not_an_approver"
    assert refused(rule, vote(BOB, approved=False)) == "not_an_approver"
    assert refused(rule, vote(BOB), escalated=True) is None
    assert refused(rule, vote(ANN), escalated=True) is None


def test_who_asked_may_deny_but_not_approve_under_separation_of_duty():
    rule = Requirement(separation_of_duty=True)
    assert refused(rule, vote(CAT)) == "separation_of_duty"
    assert refused(rule, vote(CAT, approved=False)) is None
    assert refused(rule, vote(ANN)) is None
    assert refused(rule, vote(ANN), asked_for=None) == "separation_of_duty"


def test_a_person_counts_once():
    assert refused(Requirement(quorum=2), vote(ANN), votes=(vote(ANN),)) == "already_voted"


def test_only_those_who_say_the_same_make_a_quorum_and_one_denial_decides():
    ballot = Ballot(Requirement(quorum=2), CAT, votes=(vote(ANN), vote("dan", digest="other")))
    assert ballot.completed_by(vote(BOB))
    assert not ballot.completed_by(vote(BOB, digest="third"))
    assert ballot.completed_by(vote(BOB, approved=False))


PEOPLE = st.frozensets(st.sampled_from([ANN, BOB, CAT, "dan"]))
RULES = st.builds(
    Requirement,
    quorum=st.integers(1, 3),
    approvers=st.none() | PEOPLE,
    separation_of_duty=st.booleans(),
    escalate_to=PEOPLE,
    escalate_after_ms=st.none() | st.integers(1, 9),
)
VOTES = st.builds(
    Vote,
    st.sampled_from([ANN, BOB, CAT, "dan"]),
    st.sampled_from(["asserted", "os-user", "http-auth"]),
    st.booleans(),
    st.just("d"),
)


@given(RULES, RULES, VOTES, st.booleans())
def test_two_rules_together_take_no_vote_that_one_of_them_refuses(one, other, given_vote, escalated):
    both = Ballot(one.tightened(other), CAT, escalated)
    if both.refusal(given_vote) is None:
        for rule in (one, other):
            assert Ballot(rule, CAT, escalated).refusal(given_vote) is None
            assert both.requirement.quorum >= rule.quorum


@given(RULES)
def test_a_rule_is_read_back_as_it_was_written(rule):
    assert Requirement.from_text(rule.to_text()) == rule


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"quorum": "x"}', "{" * 9999])
def test_what_is_no_rule_is_met_by_nobody(text):
    assert refused(Requirement.from_text(text), vote(ANN)) == "not_an_approver"


@pytest.mark.parametrize(
    ("pattern", "fits"), [("calendar:*", True), ("*:delete", True), ("calendar:d", False), ("mail:*", False)]
)
def test_a_pattern_names_tools(pattern, fits):
    assert fits_tool([pattern], "calendar:delete") is fits
