"""Static checks of a policy: what is reported is certain, and names rule, layer and fix."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core.explain import explain
from runtime.core.intents import Intent, intent_layer
from runtime.core.model import Decision
from runtime.core.policy import PolicyLayer, PolicyRule, compile_policy
from runtime.core.policy_check import find_closed_tools, find_dead_rules
from runtime.core.predicates import PolicyContext
from tests.unit.core.test_policy import LOOSENESS, TOOLS, arguments, call, layers

CONTRADICTIONS = [
    {"all": [{"tool_name_equals": "a:do"}, {"tool_name_equals": "b:do"}]},
    {
        "all": [
            {"argument_equals": {"path": ["x"], "value": 1}},
            {"argument_equals": {"path": ["x"], "value": 2}},
        ]
    },
    {"all": [{"argument": {"path": ["x"], "at_least": 5}}, {"argument": {"path": ["x"], "less_than": 5}}]},
    {"argument": {"path": ["x"], "greater_than": 5, "at_most": 5}},
    {
        "all": [
            {"argument": {"path": ["x"], "exists": False}},
            {"argument": {"path": ["x", "y"], "equals": 1}},
        ]
    },
    {"argument": {"path": ["x"], "starts_with": "ab", "in": ["ac", 1]}},
    {"all": [{"intent_equals": "reading"}, {"intent_equals": "writing"}]},
    {"all": [{"intent_equals": "reading"}, {"not": {"intent_reachable": "reading"}}]},
    {
        "all": [
            {"environment": {"name": "STAGE", "equals": "a"}},
            {"environment": {"name": "STAGE", "equals": "b"}},
        ]
    },
    {"any": []},
    {"tool_name_in": []},
]
POSSIBLE = [
    {"argument": {"path": ["x"], "at_least": 5, "at_most": 5}},
    {"argument": {"path": ["x"], "greater_than": 5, "less_than": 5.0000001}},
    {"argument": {"path": ["x"], "matches": "a"}},
    {"metadata": {"path": ["x"], "matches": "a"}},
    {"environment": {"name": "STAGE", "matches": "a"}},
    {"cel": "tool == 'a:do' && run_id == 'r'"},
    {"all": [{"intent_equals": "reading"}, {"not": {"intent_reachable": "writing"}}]},
    {"not": {"intent_reachable": "writing"}},
    {"all": [{"cel": "input.x == 1"}, {"cel": "input.x == 2"}]},
    {"not": {"tool_name_in": ["a:do", "b:do"]}},
    {"all": [{"tool_name_starts_with": "a:"}, {"not": {"tool_name_equals": "a:do"}}]},
    {"budget": {"name": "turns", "at_least": 3}},
    {"time": {"weekdays": ["mon"]}},
]


def policy(*rules, default="allow", **fields):
    numbered = [
        {"id": f"r{at}", "decision": decision, "when": when} for at, (decision, when) in enumerate(rules)
    ]
    layer = {"level": "workspace", "default_decision": default, "rules": numbered, **fields}
    return compile_policy([PolicyLayer.model_validate(layer)])


@pytest.mark.parametrize("when", CONTRADICTIONS)
def test_a_condition_that_contradicts_itself_is_an_error(when):
    (found,) = find_dead_rules(policy(("deny", when)))
    assert found.severity == "error"
    assert "rule 'r0' of the workspace layer (deny) can never match" in found.problem


@pytest.mark.parametrize("when", POSSIBLE)
def test_a_condition_that_some_call_meets_is_not_reported(when):
    assert find_dead_rules(policy(("deny", when))) == ()


def test_a_rule_behind_a_wider_denial_is_reported_with_both_names():
    zone = {"argument_equals": {"path": ["zone"], "value": "prod"}}
    narrower = {"all": [zone, {"tool_name_equals": "a:do"}]}
    (found,) = find_dead_rules(policy(("deny", zone), ("approval_required", narrower)))
    assert found.severity == "warning"
    assert "rule 'r1'" in found.problem
    assert "rule 'r0' of the workspace layer (deny) has denied" in found.problem
    assert find_dead_rules(policy(("deny", narrower), ("approval_required", zone))) == ()


def test_a_logged_rule_neither_shadows_nor_is_reported():
    logged = {"id": "l", "decision": "deny", "mode": "log_only"}
    asking = {"id": "r", "decision": "approval_required"}
    never = {"id": "n", "decision": "deny", "mode": "log_only", "when": {"any": []}}
    layer = {"level": "workspace", "default_decision": "allow", "rules": [logged, asking, never]}
    assert find_dead_rules(compile_policy([PolicyLayer.model_validate(layer)])) == ()


def test_a_tool_that_nothing_lets_run_is_found():
    intents = {"writing": Intent(allow_tools=["a:do"]), "reading": Intent(allow_tools=["b:do"])}
    denying = PolicyLayer(
        level="workspace",
        default_decision="deny",
        rules=[{"id": "r", "decision": "deny", "when": {"tool_name_equals": "b:do"}}],
    )
    compiled = compile_policy([denying, intent_layer(intents)])
    assert find_closed_tools(compiled, TOOLS, intents, "on_tool_request") == ("b:do", "c:do")


@pytest.mark.parametrize(
    "when",
    [
        {"metadata_equals": {"path": ["role"], "value": "admin"}},
        {"cel": "has(metadata.role)"},
        {"environment": {"name": "STAGE", "equals": "dev"}},
        {"time": {"weekdays": ["mon"]}},
    ],
)
def test_a_tool_that_some_context_lets_run_is_not_reported(when):
    compiled = policy(("allow", when), default="deny", allow_loosening=True)
    assert find_closed_tools(compiled, ["a:do"], {}, "on_tool_request") == ()


# --- modes and layers -----------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(parts=layers, tool=st.sampled_from(TOOLS), input=arguments, data=st.data())
def test_a_logged_rule_is_recorded_and_changes_nothing(parts, tool, input, data):
    context = call(tool, tool_arguments=input)
    before = compile_policy(parts).evaluate(context)
    logged = PolicyRule(id="logged", decision=data.draw(st.sampled_from(Decision)), mode="log_only")
    for at, part in enumerate(parts):
        longer = part.model_copy(update={"rules": (logged, *part.rules)})
        after = compile_policy([*parts[:at], longer, *parts[at + 1 :]]).evaluate(context)
        assert after.decision is before.decision
        assert [each for each in after.decisions if "mode" not in each] == list(before.decisions)
        assert {
            "policy_id": "logged",
            "decision": logged.decision.value,
            "mode": "log_only",
        } in after.decisions


@settings(max_examples=200, deadline=None)
@given(parts=layers, more=layers, tool=st.sampled_from(TOOLS), input=arguments)
def test_a_later_layer_that_does_not_opt_in_never_widens(parts, more, tool, input):
    """Once a default is declared."""
    context = call(tool, tool_arguments=input)
    declared = [PolicyLayer(level="workspace", default_decision="allow"), *parts]
    before = compile_policy(declared).evaluate(context).decision
    for layer in more:
        later = layer.model_copy(update={"level": "task", "allow_loosening": False})
        after = compile_policy([*declared, later]).evaluate(context).decision
        assert LOOSENESS[after] <= LOOSENESS[before]


@settings(max_examples=200, deadline=None)
@given(parts=layers, tool=st.sampled_from(TOOLS), input=arguments)
def test_an_explanation_agrees_with_the_decision(parts, tool, input):
    """It walks every rule; the decision looks only at those that its index finds."""
    context = call(tool, tool_arguments=input)
    compiled = compile_policy(parts)
    found, result = explain(compiled, context), compiled.evaluate(context)
    assert found.decision is result.decision
    matched = [(rule.id, rule.decision.value) for layer in found.layers for rule in layer.rules]
    expected = [(each["policy_id"], each["decision"]) for each in result.decisions]
    shown = [
        (rule.id, rule.decision.value)
        for layer in found.layers
        for rule in layer.rules
        if rule.id is not None and rule.matched
    ]
    assert shown == expected
    assert len(matched) >= len(shown)


def test_an_explanation_says_what_cannot_be_told():
    compiled = policy(("deny", {"cel": "input.x > 1"}))
    (layer,) = explain(compiled, PolicyContext("on_tool_request", "run", tool_arguments={})).layers
    default, rule = layer.rules
    assert (default.id, default.effective) == (None, Decision.ALLOW)
    assert (rule.matched, rule.took_effect, rule.effective) == (None, True, Decision.DENY)
    assert "the CEL expression failed" in rule.why
