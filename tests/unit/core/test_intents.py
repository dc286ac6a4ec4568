"""Intents: they open their tools, and whatever is unclear stays shut."""

from __future__ import annotations

import pytest

from runtime.core.conditions import PolicyContext
from runtime.core.intents import forecast, intent_layer, parse_intents, reachable
from runtime.core.model import TURN_TOOL, Decision
from runtime.core.policy import PolicyLayer, compile_policy
from runtime.core.policy_check import find_dead_rules
from runtime.errors import ConfigurationError

INTENTS = parse_intents(
    {
        "scheduling": {"allow_tools": ["calendar:create", "mail:send"], "approval_required_tools": []},
        "mailing": {"allow_tools": [], "approval_required_tools": ["mail:send", "mail:purge"]},
    }
)
CEILING = PolicyLayer(level="workspace", default_decision="deny")


def decide(tool, intent=None, *, sticky=True, **fields):
    policy = compile_policy([CEILING, intent_layer(INTENTS, sticky_approvals=sticky)])
    return policy.evaluate(call(tool, intent, **fields)).decision


def call(tool, intent=None, **fields):
    metadata = {} if intent is None else {"agent_intent": intent}
    return PolicyContext("on_tool_request", "run-1", None, tool, {}, metadata, **fields)


def test_an_intent_opens_its_tools_under_a_default_of_deny():
    assert decide("calendar:create", "scheduling") is Decision.ALLOW
    assert decide("calendar:create", "  scheduling\n") is Decision.ALLOW
    assert decide("mail:purge", "mailing") is Decision.APPROVAL_REQUIRED
    assert decide("mail:purge", "scheduling") is Decision.DENY


@pytest.mark.parametrize("intent", [None, "", " ", "weather", "Scheduling", 3, ["scheduling"]])
def test_a_missing_or_unknown_intent_denies_every_tool_but_the_turn(intent):
    assert decide("calendar:create", intent) is Decision.DENY
    assert decide(TURN_TOOL, intent) is Decision.ALLOW


def test_a_context_may_narrow_the_intents():
    assert decide("calendar:create", "scheduling", allowed_intents=("mailing",)) is Decision.DENY
    assert decide("calendar:create", "scheduling", allowed_intents=()) is Decision.DENY


def test_an_approval_sticks_while_an_intent_that_requires_it_is_reachable():
    assert decide("mail:send", "scheduling") is Decision.APPROVAL_REQUIRED
    assert decide("mail:send", "scheduling", allowed_intents=("scheduling",)) is Decision.ALLOW
    assert decide("mail:send", "scheduling", sticky=False) is Decision.ALLOW


def test_without_intents_only_the_turn_is_opened():
    policy = compile_policy([CEILING, intent_layer({})])
    assert policy.evaluate(call(TURN_TOOL)).decision is Decision.ALLOW
    assert policy.evaluate(call("mail:send")).decision is Decision.DENY


def test_an_intent_does_not_overrule_a_deny_rule_of_the_file():
    denying = PolicyLayer(level="workspace", rules=[{"id": "r", "decision": "deny"}])
    policy = compile_policy([denying, intent_layer(INTENTS)])
    assert policy.evaluate(call("calendar:create", "scheduling")).decision is Decision.DENY


def test_reachable_intents_are_the_configured_ones_that_the_context_allows():
    assert reachable(INTENTS, None) == ("scheduling", "mailing")
    assert reachable(INTENTS, ("mailing", "weather")) == ("mailing",)


def test_before_the_intent_is_chosen_a_tool_is_forecast_over_all_of_them():
    policy = compile_policy([CEILING, intent_layer(INTENTS, sticky_approvals=False)])
    assert forecast(policy, call("mail:send"), INTENTS).decisions == {
        Decision.ALLOW,
        Decision.APPROVAL_REQUIRED,
        Decision.DENY,
    }
    assert not forecast(policy, call("files:write"), INTENTS).listed
    assert not forecast(policy, call("mail:purge", allowed_intents=("scheduling",)), INTENTS).listed
    assert not forecast(policy, call("mail:purge", allowed_intents=()), INTENTS).listed
    assert forecast(policy, call("mail:purge", "mailing"), INTENTS).decision is Decision.APPROVAL_REQUIRED


def test_the_rules_of_intents_can_all_take_effect():
    assert find_dead_rules(compile_policy([CEILING, intent_layer(INTENTS)])) == ()


@pytest.mark.parametrize(
    ("configured", "key"),
    [
        (["scheduling"], "agent_runtime.intents"),
        ({"ops": 3}, "agent_runtime.intents.ops"),
        ({"ops": {}}, "agent_runtime.intents.ops.allow_tools"),
        ({"ops": {"allow_tools": "x"}}, "agent_runtime.intents.ops.allow_tools"),
        ({"ops": {"allow_tools": [" "]}}, "agent_runtime.intents.ops.allow_tools"),
        ({"ops": {"allow_tools": [1]}}, "agent_runtime.intents.ops.allow_tools"),
        (
            {"ops": {"allow_tools": [], "approval_required_tools": None}},
            "agent_runtime.intents.ops.approval_required_tools",
        ),
    ],
)
def test_a_malformed_intent_is_refused_by_its_key(configured, key):
    with pytest.raises(ConfigurationError) as raised:
        parse_intents(configured)
    assert key in str(raised.value)
