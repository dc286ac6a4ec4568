"""What the kernel lists and what it decides agree, whatever the rules, the context and the call."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core.intents import Intent
from runtime.core.model import ExecutionContext
from runtime.core.policy import compile_policy
from runtime.core.policy_check import find_dead_rules
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call, VerdictKind
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace
from runtime.workspace_model import (
    AgentRuntimeConfig,
    ApprovalsConfig,
    Lane,
    LanePolicies,
    Policies,
    WorkspaceFile,
)

TOOLS = ("a:do", "a:see", "b:do")
INTENTS = ("writing", "reading")
DECISIONS = ("allow", "deny", "approval_required")


def registry():
    found = ToolRegistry()
    for name in TOOLS:

        @tool(name, scopes=[])
        def act(input: dict[str, Any], ctx: ToolContext) -> dict[str, Any]:
            """Do something."""
            return input

        found.register(act)
    return found


REGISTRY = registry()

scalars = st.sampled_from([1, 2, True, "1", "ab", "abc", None])
operators = st.one_of(
    scalars.map(lambda value: {"equals": value}),
    st.lists(scalars, min_size=1, max_size=2).map(lambda values: {"in": values}),
    st.sampled_from([{"greater_than": 1}, {"at_least": 2}, {"less_than": 1.5}, {"at_most": 1}]),
    st.sampled_from([{"starts_with": "a"}, {"starts_with": "ab"}, {"matches": "b$"}]),
    st.booleans().map(lambda wanted: {"exists": wanted}),
)
paths = st.sampled_from([["x"], ["x", "y"], ["z"]])
asked_of = st.sampled_from([["agent_turn_index"], ["agent_tool_call_count"], ["agent_intent"], ["role"]])
leaves = st.one_of(
    st.sampled_from(TOOLS).map(lambda name: {"tool_name_equals": name}),
    st.lists(st.sampled_from(TOOLS), max_size=2).map(lambda names: {"tool_name_in": names}),
    st.just({"tool_name_starts_with": "a:"}),
    st.builds(lambda path, asks: {"argument": {"path": path, **asks}}, paths, operators),
    st.builds(lambda path, value: {"argument_equals": {"path": path, "value": value}}, paths, scalars),
    st.builds(lambda path, asks: {"metadata": {"path": path, **asks}}, asked_of, operators),
    st.sampled_from([0, 1, 2]).map(
        lambda turn: {"metadata_equals": {"path": ["agent_turn_index"], "value": turn}}
    ),
    st.sampled_from(INTENTS).map(lambda name: {"intent_equals": name}),
    st.sampled_from(INTENTS).map(lambda name: {"intent_reachable": name}),
    st.sampled_from([{"name": "turns", "at_least": 1}, {"name": "tokens", "less_than": 5}]).map(
        lambda asks: {"budget": asks}
    ),
    st.just({"time": {"from": "08:00", "until": "18:00", "weekdays": ["mon"]}}),
    st.sampled_from(
        [
            "input.x == 1",
            "tool == 'a:do' || intent == 'writing'",
            "metadata.role == 'guest'",
            "has(budget.turns)",
        ]
    ).map(lambda text: {"cel": text}),
)
conditions = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: {"all": items}),
        st.lists(inner, max_size=3).map(lambda items: {"any": items}),
        inner.map(lambda item: {"not": item}),
    ),
    max_leaves=5,
)
rules = st.lists(
    st.fixed_dictionaries(
        {"decision": st.sampled_from(DECISIONS), "when": st.none() | conditions},
        optional={"mode": st.sampled_from(["enforce", "log_only"])},
    ),
    max_size=5,
).map(lambda found: [{"id": f"r{at}", **rule} for at, rule in enumerate(found)])
many = st.lists(st.sampled_from(DECISIONS), min_size=8, max_size=10).map(
    lambda decisions: [
        {"id": f"m{at}", "decision": decision, "when": {"argument_equals": {"path": [f"k{at}"], "value": 1}}}
        for at, decision in enumerate(decisions)
    ]
)
tool_lists = st.lists(st.sampled_from(TOOLS), max_size=3)
intents = st.one_of(
    st.just({}),
    st.fixed_dictionaries({}, optional={name: st.tuples(tool_lists, tool_lists) for name in INTENTS}),
)


@st.composite
def hosts(draw):
    """A kernel under random rules of the workspace and a lane, with or without intents."""
    policies = Policies(
        default_decision=draw(st.sampled_from(DECISIONS)),
        allow_loosening=draw(st.booleans()),
        rules=draw(st.one_of(rules, rules, many)),
    )
    lane = LanePolicies(
        default_decision=draw(st.none() | st.sampled_from(DECISIONS)),
        allow_loosening=draw(st.booleans()),
        rules=draw(rules),
    )
    config = AgentRuntimeConfig(
        intents={
            name: Intent(allow_tools=allowed, approval_required_tools=asked)
            for name, (allowed, asked) in draw(intents).items()
        },
        approvals=ApprovalsConfig(sticky_approvals=draw(st.booleans())),
    )
    file = WorkspaceFile(agent_runtime=config, policies=policies, lanes=(Lane(id="lane", policies=lane),))
    return ToolHost(replace(Workspace.empty(), file=file), REGISTRY)


metadata = st.fixed_dictionaries(
    {},
    optional={
        "role": st.sampled_from(["guest", 1, None]),
        "agent_turn_index": st.integers(0, 2),
        "agent_intent": st.sampled_from([*INTENTS, " writing ", "", "other", 3]),
    },
)
contexts = st.builds(
    lambda metadata, allowed, lane: ExecutionContext(
        run_id="run", task_id="task", session_id="s", metadata=metadata, allowed_intents=allowed, lane_id=lane
    ),
    metadata,
    st.none() | st.lists(st.sampled_from(INTENTS), max_size=2).map(tuple),
    st.sampled_from([None, "lane"]),
)
values = st.sampled_from([1, 2, 3, 1.5, True, "1", "ab", "abc", "b", None, {}, {"y": 1}, {"y": "ab"}, [1]])
inputs = st.dictionaries(st.sampled_from(["x", "z", "k0", "k1", "k2"]), values, max_size=3)
chosen = st.sampled_from([None, "", *INTENTS, " reading\n", "other"])


def call(ctx, name, input, intent, turn, calls, now):
    return Call(
        tool_name=name,
        input=input,
        ctx=ctx,
        session_id="s",
        node_id="n",
        step_id="step",
        call_id="call",
        intent=intent,
        turn_index=turn,
        tool_calls=calls,
        now=now,
    )


def decided(host, ctx, name, input, intent, turn, calls, now):
    """What the kernel decides: allow, deny or approval_required."""
    stated = ctx.metadata.get("agent_intent")
    if stated is not None:
        # What the context says is what its host-driven calls are decided under.
        intent = stated if isinstance(stated, str) else None
    verdict = host.decide(call(ctx, name, input, intent, turn, calls, now))
    return {
        VerdictKind.RUN: "allow",
        VerdictKind.PARK: "approval_required",
        VerdictKind.REFUSE: "deny",
    }[verdict.kind]


calls = st.tuples(
    inputs, chosen, st.integers(0, 2), st.integers(0, 2), st.sampled_from([0, 4 * 86_400_000 + 36_000_000])
)


@settings(max_examples=300, deadline=None)
@given(host=hosts(), ctx=contexts, made=st.lists(calls, min_size=1, max_size=5))
def test_what_is_not_listed_is_denied_for_every_call_tried(host, ctx, made):
    listed = {each.capability.name for each in host.list_governed_tools(ctx)}
    for name in TOOLS:
        if name not in listed:
            assert {decided(host, ctx, name, *call) for call in made} == {"deny"}


@settings(max_examples=300, deadline=None)
@given(host=hosts(), ctx=contexts, made=st.lists(calls, min_size=1, max_size=5))
def test_what_is_listed_as_certain_is_decided_so_at_every_call(host, ctx, made):
    for each in host.list_governed_tools(ctx):
        if not each.depends_on_input:
            name = each.capability.name
            assert {decided(host, ctx, name, *call) for call in made} == {each.decision.value}


@settings(max_examples=300, deadline=None)
@given(host=hosts(), ctx=contexts, made=st.lists(calls, min_size=1, max_size=5))
def test_what_is_reported_as_dead_decides_nothing(host, ctx, made):
    """Without the rules that the static checks report, every call is decided as before."""
    policy = host.policy(ctx.lane_id)
    dead = [each.rule for each in find_dead_rules(policy)]
    alive = compile_policy(
        layer.model_copy(
            update={"rules": tuple(rule for rule in layer.rules if not any(rule is each for each in dead))}
        )
        for layer in policy.layers
    )
    for name in TOOLS:
        for input, intent, turn, count, now in made:
            asked = call(ctx, name, input, intent, turn, count, now)
            context = host.policy_context(asked)
            assert alive.evaluate(context).decision is policy.evaluate(context).decision


def test_a_rule_on_the_turn_is_open_in_a_listing():
    """The journal counts the turns, whatever the metadata of the listing say."""
    when = {"metadata_equals": {"path": ["agent_turn_index"], "value": 0}}
    policies = Policies(default_decision="allow", rules=[{"id": "r", "decision": "deny", "when": when}])
    host = ToolHost(replace(Workspace.empty(), file=WorkspaceFile(policies=policies)), REGISTRY)
    ctx = ExecutionContext(run_id="r", task_id="t", session_id="s", metadata={"agent_turn_index": 5})
    listed = host.list_governed_tools(ctx)
    assert [each.depends_on_input for each in listed] == [True, True, True]
    assert decided(host, ctx, "a:do", {}, None, 0, 0, 0) == "deny"
    assert decided(host, ctx, "a:do", {}, None, 1, 0, 0) == "allow"


def test_a_listing_under_intents_says_that_a_call_without_one_is_denied():
    config = AgentRuntimeConfig(intents={"writing": Intent(allow_tools=["a:do"])})
    host = ToolHost(replace(Workspace.empty(), file=WorkspaceFile(agent_runtime=config)), REGISTRY)

    def listed(**metadata):
        ctx = ExecutionContext(run_id="r", task_id="t", session_id="s", metadata=metadata)
        found = host.list_governed_tools(ctx)
        return [(each.capability.name, each.decision.value, each.depends_on_input) for each in found]

    assert listed() == [("a:do", "allow", True)]
    assert listed(agent_intent="writing") == [("a:do", "allow", False)]
    assert listed(agent_intent="") == listed(agent_intent="other") == []
