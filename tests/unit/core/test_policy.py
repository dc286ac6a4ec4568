"""Policy: what tightens holds, what loosens needs an opt-in, and listings never hide a usable tool."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from runtime.core.model import Decision
from runtime.core.policy import PolicyLayer, PolicyRule, compile_policy
from runtime.core.policy_check import find_dead_rules
from runtime.core.predicates import PolicyContext

LOOSENESS = {Decision.DENY: 0, Decision.APPROVAL_REQUIRED: 1, Decision.ALLOW: 2}
TOOLS = ("a:do", "b:do", "c:do")

conditions = st.recursive(
    st.one_of(
        st.sampled_from(TOOLS).map(lambda name: {"tool_name_equals": name}),
        st.sampled_from([1, True, "1", None]).map(
            lambda value: {"argument_equals": {"path": ["x"], "value": value}}
        ),
        st.sampled_from([1, 2]).map(lambda value: {"argument_equals": {"path": ["y", "z"], "value": value}}),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=2).map(lambda items: {"all": items}),
        st.lists(inner, max_size=2).map(lambda items: {"any": items}),
        inner.map(lambda item: {"not": item}),
    ),
    max_leaves=4,
)
rules = st.builds(
    lambda decision, when: PolicyRule(id="r", decision=decision, when=when),
    st.sampled_from(Decision),
    st.none() | conditions,
)
layers = st.lists(
    st.builds(
        PolicyLayer,
        level=st.sampled_from(["workspace", "lane", "pack", "task"]),
        default_decision=st.none() | st.sampled_from(Decision),
        allow_loosening=st.booleans(),
        rules=st.lists(rules, max_size=3).map(tuple),
    ),
    max_size=4,
)
arguments = st.fixed_dictionaries(
    {}, optional={"x": st.sampled_from([1, True, "1", None]), "y": st.sampled_from([3, {"z": 1}, {"z": 2}])}
)


def call(tool_name="a:do", **fields):
    return PolicyContext(trigger="on_tool_request", run_id="run-1", tool_name=tool_name, **fields)


def decide(*parts, **fields):
    return compile_policy(parts).evaluate(call(**fields)).decision


def layer(level, default=None, *parts, loosen=False):
    return PolicyLayer(level=level, default_decision=default, allow_loosening=loosen, rules=parts)


def rule(decision, when=None, name="r"):
    return PolicyRule(id=name, decision=decision, when=when)


@settings(max_examples=60, deadline=None)
@given(parts=layers, tool=st.sampled_from(TOOLS), input=arguments, when=st.none() | conditions)
def test_a_further_deny_rule_never_widens(parts, tool, input, when):
    context = call(tool, tool_arguments=input)
    before = compile_policy(parts).evaluate(context).decision
    for at, part in enumerate(parts):
        denying = part.model_copy(update={"rules": (*part.rules, rule("deny", when))})
        after = compile_policy([*parts[:at], denying, *parts[at + 1 :]]).evaluate(context).decision
        assert LOOSENESS[after] <= LOOSENESS[before]


@settings(max_examples=60, deadline=None)
@given(parts=layers, tool=st.sampled_from(TOOLS), input=arguments)
def test_a_forecast_holds_the_decision_of_every_input(parts, tool, input):
    policy = compile_policy(parts)
    forecast = policy.evaluate_unknown_arguments(call(tool))
    decision = policy.evaluate(call(tool, tool_arguments=input)).decision
    assert decision in forecast.decisions
    assert forecast.listed or decision is Decision.DENY


@settings(max_examples=60, deadline=None)
@given(parts=layers, tool=st.sampled_from(TOOLS), input=arguments)
def test_a_dead_rule_can_be_removed_without_effect(parts, tool, input):
    policy = compile_policy(parts)
    dead = [id(each.rule) for each in find_dead_rules(policy)]
    alive = [
        part.model_copy(update={"rules": tuple(each for each in part.rules if id(each) not in dead)})
        for part in parts
    ]
    context = call(tool, tool_arguments=input)
    assert compile_policy(alive).evaluate(context).decision == policy.evaluate(context).decision


def test_what_nothing_allows_is_denied():
    assert decide() is Decision.DENY
    assert decide(layer("workspace")) is Decision.DENY


def test_an_allow_rule_needs_the_opt_in_of_its_own_layer():
    allowing = rule("allow")
    assert decide(layer("workspace", "deny", allowing)) is Decision.DENY
    assert decide(layer("workspace", "deny", allowing, loosen=True)) is Decision.ALLOW
    assert decide(layer("workspace", "deny", loosen=True), layer("lane", None, allowing)) is Decision.DENY


def test_a_deny_rule_is_final_against_a_loosening_layer():
    loosening = layer("task", "allow", rule("allow"), loosen=True)
    assert decide(layer("workspace", "allow", rule("deny")), loosening) is Decision.DENY


def test_an_approval_that_took_effect_is_final_against_allow():
    loosening = layer("task", "allow", rule("allow"), loosen=True)
    asking = layer("workspace", "allow", rule("approval_required"))
    assert decide(asking, loosening) is Decision.APPROVAL_REQUIRED


def test_an_approval_rule_does_not_loosen_a_denial():
    assert decide(layer("workspace", "deny", rule("approval_required"))) is Decision.DENY


def test_the_order_of_layers_is_by_level_not_by_input():
    strict, loose = layer("workspace", "deny"), layer("task", "allow")
    assert decide(loose, strict) is decide(strict, loose) is Decision.DENY


@pytest.mark.parametrize("value", [True, "1", 1.5, None, [1], {"a": 1}])
def test_scalars_are_compared_with_their_type(value):
    asking = rule("deny", {"argument_equals": {"path": ["x"], "value": 1}})
    assert decide(layer("workspace", "allow", asking), tool_arguments={"x": value}) is Decision.ALLOW
    assert decide(layer("workspace", "allow", asking), tool_arguments={"x": 1}) is Decision.DENY


@pytest.mark.parametrize("input", [None, 3, [], {}, {"x": 3}, {"x": {}}])
def test_a_lookup_that_finds_nothing_is_not_true(input):
    denying = rule("deny", {"argument_equals": {"path": ["x", "y"], "value": None}})
    assert decide(layer("workspace", "allow", denying), tool_arguments=input) is Decision.ALLOW


def test_a_tool_is_listed_unless_every_input_is_denied():
    prod = {"argument_equals": {"path": ["zone"], "value": "prod"}}
    policy = compile_policy([layer("workspace", "allow", rule("deny", prod))])
    forecast = policy.evaluate_unknown_arguments(call())
    assert (forecast.listed, forecast.depends_on_input) == (True, True)
    never = compile_policy([layer("workspace", "allow", rule("deny", {"tool_name_equals": "a:do"}))])
    assert not never.evaluate_unknown_arguments(call()).listed
    assert never.evaluate_unknown_arguments(call("b:do")).decision is Decision.ALLOW
    assert not never.evaluate_unknown_arguments(call("b:do")).depends_on_input


def test_rules_about_one_argument_are_forecast_together():
    """Two rules that between them deny every input hide the tool."""
    prod = {"argument_equals": {"path": ["zone"], "value": "prod"}}
    policy = compile_policy([layer("workspace", "allow", rule("deny", prod), rule("deny", {"not": prod}))])
    assert not policy.evaluate_unknown_arguments(call()).listed


def test_a_forecast_of_many_kinds_of_input_leaves_none_out():
    """With more kinds of input than are tried one by one, the forecast stays an upper bound."""
    parts = [rule("deny", {"argument_equals": {"path": [f"k{at}"], "value": 1}}) for at in range(10)]
    forecast = compile_policy([layer("workspace", "allow", *parts)]).evaluate_unknown_arguments(call())
    assert forecast.decisions == {Decision.ALLOW, Decision.DENY}


def test_a_rule_of_another_trigger_does_not_count():
    denying = PolicyRule(id="r", trigger="on_completion", decision="deny")
    policy = compile_policy([layer("workspace", "allow", denying)])
    assert policy.evaluate(call()).decision is Decision.ALLOW
    assert policy.evaluate(replace(call(), trigger="on_completion")).decision is Decision.DENY
    assert policy.evaluate(replace(call(), trigger="on_evidence_added")).decision is Decision.ALLOW


def test_an_allow_rule_without_effect_is_an_error_that_names_the_key():
    (dead,) = find_dead_rules(compile_policy([layer("workspace", "deny", rule("allow", name="open"))]))
    assert dead.severity == "error"
    assert "'open'" in dead.problem
    assert "allow_loosening" in dead.problem


def test_an_approval_rule_without_effect_is_a_warning():
    (dead,) = find_dead_rules(compile_policy([layer("workspace", "deny", rule("approval_required"))]))
    assert dead.severity == "warning"


def test_rules_that_can_take_effect_are_not_reported():
    policy = compile_policy(
        [
            layer("workspace", "allow", rule("approval_required", {"tool_name_equals": "a:do"})),
            layer("task", None, rule("allow", {"tool_name_equals": "b:do"})),
        ]
    )
    assert find_dead_rules(policy) == ()


@pytest.mark.parametrize(
    "when", [{}, {"tool_name": "a"}, {"all": [], "any": []}, {"all": [{"nope": 1}]}, "a:do", ["a:do"]]
)
def test_a_malformed_condition_is_refused_with_the_known_keys(when):
    with pytest.raises(ValidationError, match="exactly one of the keys tool_name_equals"):
        PolicyRule(id="r", decision="deny", when=when)


def test_a_returned_decision_is_the_callers_own():
    policy = compile_policy([layer("workspace", "allow", rule("deny"))])
    policy.evaluate(call()).decisions[0]["policy_id"] = "forged"
    assert policy.evaluate(call()).decisions[0]["policy_id"] == "r"
