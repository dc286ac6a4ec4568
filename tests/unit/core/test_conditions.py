"""Conditions: each kind holds where it says, and fails closed where that cannot be told."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter, ValidationError

from runtime.core.conditions import When
from runtime.core.model import Decision
from runtime.core.policy import PolicyLayer, compile_policy
from runtime.core.predicates import PolicyContext

WHEN = TypeAdapter(When)
MONDAY_NOON = datetime(2026, 1, 5, 12, tzinfo=UTC)


def call(**fields):
    return PolicyContext(trigger="on_tool_request", run_id="run", tool_name="a:do", **fields)


def holds(when, **fields):
    bound = WHEN.validate_python(when).bind("a:do")
    return bound if isinstance(bound, bool) else bound.test(call(**fields))


def decide(when, decision, **fields):
    """What one rule makes of a call: a denying or asking one after allow, an allowing one after deny."""
    default = "deny" if decision == "allow" else "allow"
    layer = {
        "level": "workspace",
        "default_decision": default,
        "allow_loosening": True,
        "rules": [{"id": "r", "decision": decision, "when": when}],
    }
    return compile_policy([PolicyLayer.model_validate(layer)]).evaluate(call(**fields))


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asks", "good", "bad"),
    [
        ({"equals": 1}, [1, 1.0], [True, "1", 2, None, {}]),
        ({"equals": None}, [None], [0, "", False]),
        ({"in": [1, "b", False]}, [1, "b", False], [True, 0, "a", [1]]),
        ({"greater_than": 5}, [6, 5.1, 10**400], [5, "6", True, None, [6]]),
        ({"at_least": 5}, [5, 5.0], [4.999, "5"]),
        ({"less_than": 5}, [4, -1], [5, False, "4"]),
        ({"at_most": 5}, [5], [5.001]),
        ({"at_least": 1, "less_than": 3}, [1, 2.9], [0, 3]),
        ({"starts_with": "ab"}, ["ab", "abc"], ["a", "xab", 1, None]),
        ({"matches": "^a+$"}, ["a", "aaa"], ["b", "aab", 1, None]),
        ({"matches": 'x"\\\\ü\n'}, ['x"\\ü\n'], ['x"']),
        ({"exists": True}, [None, 0, {}], []),
    ],
)
def test_an_operator_holds_of_what_it_names(asks, good, bad):
    when = {"argument": {"path": ["x", "y"], **asks}}
    assert all(holds(when, tool_arguments={"x": {"y": value}}) is True for value in good)
    assert all(holds(when, tool_arguments={"x": {"y": value}}) is False for value in bad)
    assert all(
        holds(when, tool_arguments=missing) is False for missing in ({}, {"x": 3}, {"x": {}}, None, [])
    )


def test_what_must_not_exist_may_be_missing_at_any_depth():
    when = {"metadata": {"path": ["x", "y"], "exists": False}}
    assert all(holds(when, execution_metadata=each) is True for each in ({}, {"x": 3}, {"x": {}}))
    assert holds(when, execution_metadata={"x": {"y": None}}) is False


def test_a_pattern_takes_linear_time_and_long_or_broken_text_is_not_searched():
    when = {"argument": {"path": ["x"], "matches": "(a*)*b"}}
    assert holds(when, tool_arguments={"x": "a" * 100_000}) is False
    assert holds(when, tool_arguments={"x": "a" * 100_001}) is None
    assert holds(when, tool_arguments={"x": "\ud800"}) is None


def test_a_variable_is_read_from_what_the_context_brings():
    when = {"environment": {"name": "STAGE", "in": ["production", "canary"]}}
    assert holds(when, environment={"STAGE": "canary"}) is True
    assert holds(when, environment={"STAGE": "dev"}) is False
    assert holds(when) is False


@pytest.mark.parametrize("name", ["API_KEY", "github_token", "DB_PASSWORD", "DATABASE_URL", "A B", ""])
def test_no_rule_reads_a_variable_that_may_hold_a_secret(name):
    with pytest.raises(ValidationError):
        WHEN.validate_python({"environment": {"name": name, "equals": "x"}})


def test_a_budget_that_nobody_counts_fails_closed():
    when = {"budget": {"name": "tokens", "at_least": 100}}
    assert (holds(when, budget={"tokens": 100}), holds(when, budget={"tokens": 99})) == (True, False)
    assert holds(when) is None
    assert decide(when, "deny").decision is Decision.DENY
    assert decide(when, "approval_required").decision is Decision.APPROVAL_REQUIRED
    allowed = decide({"budget": {"name": "tokens", "less_than": 100}}, "allow")
    assert allowed.decision is Decision.DENY
    assert "nobody counts the budget 'tokens'" in allowed.doubts[0]


def test_an_approval_rule_in_doubt_does_not_loosen_a_denial():
    """Not even in a layer that may loosen: what cannot be told must not open anything."""
    layer = PolicyLayer.model_validate(
        {
            "level": "workspace",
            "default_decision": "deny",
            "allow_loosening": True,
            "rules": [
                {
                    "id": "r",
                    "decision": "approval_required",
                    "when": {"budget": {"name": "money", "at_most": 5}},
                }
            ],
        }
    )
    assert compile_policy([layer]).evaluate(call()).decision is Decision.DENY
    assert compile_policy([layer]).evaluate(call(budget={"money": 5})).decision is Decision.APPROVAL_REQUIRED


# --- time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("period", "instant", "inside"),
    [
        ({"from": "08:00", "until": "18:00"}, (2026, 1, 5, 8, 0), True),
        ({"from": "08:00", "until": "18:00"}, (2026, 1, 5, 18, 0), False),
        ({"from": "22:00", "until": "06:00"}, (2026, 1, 5, 23, 0), True),
        ({"from": "22:00", "until": "06:00"}, (2026, 1, 5, 5, 59), True),
        ({"from": "22:00", "until": "06:00"}, (2026, 1, 5, 6, 0), False),
        ({"weekdays": ["mon"]}, (2026, 1, 5, 0, 0), True),
        ({"weekdays": ["mon"]}, (2026, 1, 6, 0, 0), False),
        # A night that begins on Monday reaches into Tuesday; Monday's small hours are Sunday's night.
        ({"from": "22:00", "until": "06:00", "weekdays": ["mon"]}, (2026, 1, 6, 3, 0), True),
        ({"from": "22:00", "until": "06:00", "weekdays": ["mon"]}, (2026, 1, 5, 3, 0), False),
        # Berlin is one hour ahead in January and two in July.
        ({"zone": "Europe/Berlin", "from": "08:00", "until": "09:00"}, (2026, 1, 5, 7, 30), True),
        ({"zone": "Europe/Berlin", "from": "08:00", "until": "09:00"}, (2026, 7, 6, 6, 30), True),
        ({"zone": "Europe/Berlin", "from": "08:00", "until": "09:00"}, (2026, 7, 6, 7, 30), False),
        ({"zone": "Pacific/Auckland", "weekdays": ["tue"]}, (2026, 1, 5, 12, 0), True),
    ],
)
def test_a_period_is_by_the_clocks_of_its_zone(period, instant, inside):
    assert holds({"time": period}, now=datetime(*instant, tzinfo=UTC)) is inside


def test_where_the_time_is_not_known_a_rule_fails_closed():
    assert decide({"time": {"weekdays": ["mon"]}}, "deny").decision is Decision.DENY
    assert decide({"time": {"weekdays": ["mon"]}}, "allow").decision is Decision.DENY


# --- CEL ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("input.n > 5 && metadata.role == 'guest'", True),
        ("tool == 'a:do' && intent == 'reading'", True),
        ("input.names.exists(name, name.startsWith('x'))", True),
        ("now.getHours('Europe/Berlin') == 13", True),
        ("has(input.nope) && input.nope > 1", False),
        ("input.nope == 1 || input.n == 7", True),
        ("input.nope == 1", None),
        ("1 / (input.n - 7) == 1", None),
        ("input.big == 1", None),
        ("budget.tokens > 5", None),
        ("input.n", None),
    ],
)
def test_an_expression_is_true_false_or_fails(text, expected):
    big = {} if "big" not in text else {"big": 2**80}
    found = holds(
        {"cel": text},
        tool_arguments={"n": 7, "names": ["ab", "xy"], **big},
        execution_metadata={"role": "guest", "agent_intent": "reading"},
        now=MONDAY_NOON,
    )
    assert found is expected


def test_an_expression_that_fails_denies_and_says_why():
    denied = decide({"cel": "input.amount > 100"}, "deny", tool_arguments={})
    assert denied.decision is Decision.DENY
    assert "the CEL expression failed" in denied.decisions[0]["reason"]
    assert "amount" in denied.decisions[0]["reason"]
    opened = decide({"cel": "input.amount < 100"}, "allow", tool_arguments={})
    assert opened.decision is Decision.DENY
    assert "amount" in opened.doubts[0]


@pytest.mark.parametrize(
    "text", ["", "1 +", "1 + 1", "nope == 1", "intent + 1 == 2", "'a'", "true && " * 2000 + "true", "\ud800"]
)
def test_an_expression_that_is_no_condition_is_refused_when_it_is_loaded(text):
    with pytest.raises(ValidationError, match="CEL expression"):
        WHEN.validate_python({"cel": text})


def deep(levels):
    value = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("text", "input"),
    [
        ("input == input", deep(20_000)),
        ("input.l.all(x, input.l.all(y, input.l.all(z, x + y + z >= 0)))", {"l": list(range(300))}),
        ("size(input.l) > 0", {"l": [0] * 20_000}),
    ],
)
def test_an_expression_costs_a_bounded_amount(text, input):
    """What is too deep, too wide or too long to evaluate is in doubt, and ends no process."""
    assert holds({"cel": text}, tool_arguments=input) is None


# --- shapes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "when",
    [
        {"argument": {"path": ["x"]}},
        {"argument": {"path": [], "equals": 1}},
        {"argument": {"path": ["x"], "matches": "("}},
        {"argument": {"path": ["x"], "at_least": "1"}},
        {"argument": {"path": ["x"], "in": []}},
        {"argument": {"path": ["x"], "exists": None}},
        {"budget": {"name": "turns", "starts_with": "x"}},
        {"budget": {"name": "patience", "at_least": 1}},
        {"time": {"zone": "Nowhere/Town"}},
        {"time": {"from": "25:00"}},
        {"time": {"weekdays": ["someday"]}},
        {"tool_name_starts_with": ""},
    ],
)
def test_a_condition_that_asks_nothing_sensible_is_refused(when):
    with pytest.raises(ValidationError):
        WHEN.validate_python(when)


@pytest.mark.parametrize(
    "when",
    [
        {"argument": {"path": ["x"], "in": [1, True]}},
        {"time": {"from": "08:00", "until": "18:00", "zone": "UTC"}},
        {"not": {"environment": {"name": "STAGE", "equals": "dev"}}},
    ],
)
def test_a_condition_is_written_as_it_was_read(when):
    assert WHEN.dump_python(WHEN.validate_python(when), mode="json", exclude_unset=True) == when
