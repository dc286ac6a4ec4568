"""Rules of approval hold where answers are given: quorum, approvers, separation of duty, escalation."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from runtime.engine.sweep import sweep
from runtime.errors import ApprovalRefused, ConfigurationError
from tests.harness.approving import ANN, BOB, CAT, approving, kinds, park, receipts, say, say_as
from tests.harness.witness import ledger

TWO = {"rules": [{"tools": ["ledger:*"], "quorum": 2}]}
STAFF = {
    "roles": {"lead": [ANN], "board": [BOB, CAT]},
    "rules": [
        {
            "tools": ["ledger:guarded"],
            "approvers": {"roles": ["lead"]},
            "escalate": {"after": "1h", "approvers": {"roles": ["board"]}},
        }
    ],
}


def refusal(code, act, *args, **values):
    with pytest.raises(ApprovalRefused) as refused:
        act(*args, **values)
    assert refused.value.code == code
    return str(refused.value)


def execute(runtime, sql):
    with runtime.parts.database.writing() as connection:
        return connection.execute(text(sql)).rowcount


def test_a_call_runs_once_two_different_people_said_yes(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        first = say(runtime, request, ANN)
        assert (first.status, first.votes, first.quorum) == ("pending", 1, 2)
        workers.drain()
        assert (ledger(), runtime.session("s-1", principal=CAT).status()) == ({}, "waiting_approval")
        assert runtime.verify("s-1", principal=CAT).problem is None
        assert say(runtime, request, BOB).status == "approved"
        workers.drain()
        assert ledger() == {"guarded g": 1}
        assert [kind for kind in kinds(runtime) if kind.startswith("approval")] == [
            "approval_requested", "approval_vote", "approval_resolved",
        ]  # fmt: skip
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_the_same_person_twice_is_refused_and_changes_nothing(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        _, request = park(runtime)
        say(runtime, request, ANN)
        before = kinds(runtime)
        assert ANN in refusal("already_voted", say, runtime, request, ANN)
        refusal("already_voted", say, runtime, request, ANN, False)
        assert kinds(runtime) == before
        assert runtime.approvals("s-1")[0].votes == 1


def test_one_denial_denies_whoever_approved_before(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        say(runtime, request, ANN)
        assert say(runtime, request, BOB, False).status == "denied"
        workers.drain()
        assert (ledger(), runtime.session("s-1", principal=CAT).status()) == ({}, "completed")
        assert runtime.verify("s-1", principal=CAT).problem is None


@pytest.mark.parametrize("end", ["expired", "cancelled"])
def test_a_vote_for_what_never_came_about_stays_in_evidence(folder, migrated_url, end):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        say(runtime, request, ANN)
        if end == "expired":
            execute(runtime, "UPDATE approval SET expires_at = 1")
            sweep(runtime.parts)
        else:
            runtime.session("s-1", principal=CAT).cancel()
        workers.drain()
        (found,) = runtime.approvals("s-1", status=None)
        assert (found.status, ledger()) == (end, {})
        assert kinds(runtime).count("approval_vote") == 1
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_who_only_says_a_name_is_refused_where_people_are_counted(folder, migrated_url):
    with approving(folder, migrated_url, established_by="asserted", **TWO) as runtime:
        _, request = park(runtime)
        said = refusal("not_authenticated", say, runtime, request, ANN)
        assert "'asserted'" in said
        assert say_as(runtime, request, ANN, "os-user").votes == 1


def test_an_application_cannot_open_as_anything_but_asserted_or_authenticated(folder, migrated_url):
    with (
        pytest.raises(ConfigurationError, match="answers_established_by is 'kernel'"),
        approving(folder, migrated_url, established_by="kernel"),
    ):
        pass


def test_the_evidence_of_an_answer_says_how_it_was_known_who_gave_it(folder, migrated_url):
    with approving(folder, migrated_url) as runtime:
        _, request = park(runtime)
        say(runtime, request, ANN)
        (body,) = [json.loads(each.body) for each in receipts(runtime) if each.kind == "approval_resolved"]
        assert (body["principal"], body["established_by"]) == (ANN, "http-auth")


def test_the_principal_of_the_session_cannot_approve_its_own_call(folder, migrated_url):
    rule = {"tools": ["*"], "separation_of_duty": True}
    with approving(folder, migrated_url, rules=[rule]) as runtime:
        _, request = park(runtime, principal=CAT)
        refusal("separation_of_duty", say, runtime, request, CAT)
        assert say(runtime, request, ANN).status == "approved"
        _, nobody = park(runtime, session_id="s-2", principal=None)
        refusal("separation_of_duty", say, runtime, nobody, ANN)


def test_the_second_group_answers_once_a_sweep_escalated(folder, migrated_url):
    with approving(folder, migrated_url, **STAFF) as runtime:
        workers, request = park(runtime)
        refusal("not_an_approver", say, runtime, request, BOB)
        sweep(runtime.parts)
        assert runtime.approvals("s-1")[0].escalated_at is None
        execute(runtime, "UPDATE approval SET escalate_at = 1")
        sweep(runtime.parts)
        sweep(runtime.parts)
        assert kinds(runtime).count("approval_escalated") == 1
        assert runtime.verify("s-1", principal=CAT).problem is None
        assert say(runtime, request, BOB).status == "approved"
        workers.drain()
        assert ledger() == {"guarded g": 1}
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_a_later_file_cannot_loosen_what_was_asked(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        _, request = park(runtime)
    with approving(folder, migrated_url) as runtime:
        assert say(runtime, request, ANN).status == "pending"
        assert say(runtime, request, BOB).status == "approved"


def test_a_later_file_that_is_stricter_wins(folder, migrated_url):
    with approving(folder, migrated_url) as runtime:
        _, request = park(runtime)
    with approving(folder, migrated_url, **TWO) as runtime:
        assert say(runtime, request, ANN).status == "pending"
    with approving(folder, migrated_url) as runtime:
        refusal("already_voted", say, runtime, request, ANN)
        assert say(runtime, request, BOB).status == "approved"
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_two_answers_at_once_are_two_votes_and_one_decision(folder, migrated_url):
    with approving(folder, migrated_url, **TWO) as runtime:
        workers, request = park(runtime)
        barrier = threading.Barrier(2)

        def answer(who):
            barrier.wait(60)
            return say(runtime, request, who).status

        with ThreadPoolExecutor(2) as pool:
            found = sorted(pool.map(answer, (ANN, BOB)))
        assert found == ["approved", "pending"]
        workers.drain()
        assert ledger() == {"guarded g": 1}
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_a_rule_has_its_own_expiry(folder, migrated_url):
    rule = {"tools": ["ledger:guarded"], "expires_after": "5m"}
    with approving(folder, migrated_url, rules=[rule]) as runtime:
        park(runtime)
        (request,) = runtime.approvals("s-1")
        assert request.expires_at - request.requested_at == 300_000


@pytest.mark.parametrize(
    ("answered", "code"),
    [("approved", "already_resolved"), ("expired", "expired"), ("cancelled", "cancelled")],
)
def test_an_answer_that_comes_too_late_is_refused_with_its_reason(folder, migrated_url, answered, code):
    with approving(folder, migrated_url) as runtime:
        workers, request = park(runtime)
        if answered == "approved":
            say(runtime, request, ANN)
        elif answered == "expired":
            execute(runtime, "UPDATE approval SET expires_at = 1")
            refusal(code, say, runtime, request, BOB)
            sweep(runtime.parts)
        else:
            runtime.session("s-1", principal=CAT).cancel()
        before = kinds(runtime)
        for approved in (True, False):
            refusal(code, say, runtime, request, BOB, approved)
        refusal(code, say, runtime, request, BOB, input={"name": "other"})
        refusal(code, say, runtime, request, BOB, response={"wrote": "g"})
        assert kinds(runtime) == before
        workers.drain()
        assert runtime.verify("s-1", principal=CAT).problem is None


def test_an_answer_about_another_call_is_refused(folder, migrated_url):
    with approving(folder, migrated_url) as runtime:
        _, request = park(runtime)
        (waiting,) = runtime.approvals("s-1")
        refusal("action_digest_mismatch", say, runtime, request, ANN, digest="0" * 64)
        execute(runtime, "UPDATE step SET input = '{\"name\":\"forged\"}' WHERE status = 'waiting_approval'")
        refusal("action_digest_mismatch", say, runtime, request, ANN)
        execute(runtime, "UPDATE step SET input = '{\"name\":\"g\"}' WHERE status = 'waiting_approval'")
        assert say(runtime, request, ANN, digest=waiting.digest).status == "approved"


# --- what verification finds ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        ("UPDATE approval SET rule = NULL", "its rule is not the one that its call stated"),
        ("UPDATE approval SET escalated_at = 1", "it was escalated, but no receipt says so"),
        ("UPDATE approval_vote SET digest = 'x' WHERE principal LIKE 'ann%'", "the digest of its answer"),
        ("UPDATE approval_vote SET answer = 'edit' WHERE principal LIKE 'ann%'", "the answer of its answer"),
        ("DELETE FROM approval_vote WHERE principal LIKE 'ann%'", "it has 1 answers"),
    ],
)
def test_a_changed_rule_or_vote_is_named(folder, migrated_url, damage, reason):
    with approving(folder, migrated_url, **TWO) as runtime:
        _, request = park(runtime)
        say(runtime, request, ANN)
        say(runtime, request, BOB)
        assert runtime.verify("s-1", principal=CAT).problem is None
        assert execute(runtime, damage) == 1
        found = runtime.verify("s-1", principal=CAT).problem
        assert found.entry == f"approval {request}"
        assert reason in found.reason


@pytest.mark.parametrize(
    ("approvals", "said"),
    [
        ({"rules": [{"tools": ["*"], "approvers": {"roles": ["lead"]}}]}, "names the role 'lead'"),
        ({"rules": [{"tools": ["*"], "quorum": 2, "approvers": {"principals": ["a"]}}]}, "names 1"),
        ({"rules": [{"tools": ["*"], "approvers": {}}]}, "approvers names nobody"),
        ({"rules": [{"tools": ["*"], "quorum": 0}]}, "greater than or equal to 1"),
        (
            {"rules": [{"tools": ["*"], "escalate": {"after": "1h", "approvers": {"principals": ["a"]}}}]},
            "escalate adds to approvers",
        ),
        ({"rules": [{"tools": ["*"], "quorums": 2}]}, "unknown key"),
        (
            {
                "expires_after": "1h",
                "rules": [
                    {
                        "tools": ["*"],
                        "approvers": {"principals": ["a"]},
                        "escalate": {"after": "1h", "approvers": {"principals": ["b"]}},
                    }
                ],
            },
            "escalates when its requests have expired",
        ),
    ],
)
def test_a_rule_that_nobody_could_meet_is_an_error_of_the_file(folder, migrated_url, approvals, said):
    with pytest.raises(ConfigurationError, match=said), approving(folder, migrated_url, **approvals):
        pass
