"""What policy costs: one decision, a listing, and what it takes to get ready.

Four layers of 50 rules each: a fifth about named tools, a fifth about arguments alone, and the rest about
metadata, intents and combinations. Every decision is about another input and another context; nothing is kept
between two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any

from bench.figure import Figure, Line, Spread
from runtime.core.intents import Intent, intent_layer
from runtime.core.model import Decision, ExecutionContext
from runtime.core.policy import CompiledPolicy, PolicyContext, PolicyLayer, compile_policy
from runtime.kernel.tool_host import ToolHost
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace
from runtime.workspace_model import AgentRuntimeConfig, Lane, LanePolicies, Policies, WorkspaceFile

if TYPE_CHECKING:
    from bench.lab import Lab

LEVELS = ("workspace", "lane", "pack", "task")
RULES = 50
TOOLS = 500
INTENTS = 5


def _measure(_lab: Lab, quick: bool) -> list[Line]:
    rounds, calls = (3, 500) if quick else (7, 5000)
    contexts = list(_contexts(calls))
    policy = compile_policy(_layers())
    arguments_only = compile_policy(_layers(_about_arguments))
    with_cel = compile_policy(_layers(_about_cel))
    return [
        Line(
            "decide, warm, 4 × 50 rules", "µs p50", _spread(rounds, lambda: _p50(policy, contexts)),
            at_most=100,
        ),
        Line(
            "decide, argument-only rules", "µs p50", _spread(rounds, lambda: _p50(arguments_only, contexts)),
            at_most=100,
        ),
        Line("decide, cold (first of a tool)", "µs p50", _spread(rounds, lambda: _cold(contexts[:100]))),
        Line("decide, 10 CEL rules", "µs p50", _spread(rounds, lambda: _p50(with_cel, contexts[:500]))),
        Line("compile 4 × 50 rules", "ms", _spread(rounds, lambda: _ms(lambda: compile_policy(_layers())))),
        *_listings(rounds),
    ]  # fmt: skip


def _listings(rounds: int) -> list[Line]:
    workspace, registry = _workspace(), _registry()
    ctx = ExecutionContext(run_id="bench", task_id="bench", session_id="bench", lane_id="lane")
    warm = ToolHost(workspace, registry)
    warm.list_governed_tools(ctx)
    return [
        Line(
            f"list {TOOLS} tools, {INTENTS} intents", "ms",
            _spread(rounds, lambda: _ms(lambda: warm.list_governed_tools(ctx))), at_most=20,
        ),
        Line(
            "the same, first after a start", "ms",
            _spread(rounds, lambda: _ms(lambda: ToolHost(workspace, registry).list_governed_tools(ctx))),
        ),
    ]  # fmt: skip


# --- what is decided ------------------------------------------------------------------------------


def _rule(at: int) -> dict[str, Any]:
    """A condition of one of five kinds."""
    argument = {"argument_equals": {"path": ["target", "zone"], "value": f"zone-{at}"}}
    large = {"argument": {"path": ["n"], "at_least": at}}
    acted = {"metadata": {"path": ["actor"], "exists": True}}
    kinds: tuple[dict[str, Any], ...] = (
        {"tool_name_equals": f"tool:{at}"},
        argument,
        {"metadata_equals": {"path": ["actor", "role"], "value": f"role-{at}"}},
        {"all": [{"tool_name_in": [f"tool:{at}", f"tool:{at + 1}"]}, large]},
        {"any": [{"intent_equals": f"intent-{at}"}, {"not": acted}]},
    )  # fmt: skip
    return kinds[at % 5]


def _about_arguments(at: int) -> dict[str, Any]:
    kinds: tuple[dict[str, Any], ...] = (
        {"argument_equals": {"path": ["target", "zone"], "value": f"zone-{at}"}},
        {"argument": {"path": ["n"], "greater_than": 1000 + at}},
        {"argument": {"path": [f"flag-{at}"], "exists": True}},
    )
    return kinds[at % 3]


def _about_cel(at: int) -> dict[str, Any]:
    return {"cel": f"input.n > {1000 + at} && metadata.actor.role == 'guest'"} if at % 20 == 0 else _rule(at)


def _layers(condition: Callable[[int], dict[str, Any]] = _rule) -> list[PolicyLayer]:
    decisions = ("allow", "approval_required", "deny")
    return [
        PolicyLayer.model_validate(
            {
                "level": level,
                "default_decision": "allow",
                "rules": [
                    _numbered(level, at, decisions[at % 3], condition(at + RULES * number))
                    for at in range(RULES)
                ],
            }
        )
        for number, level in enumerate(LEVELS)
    ]


def _numbered(level: str, at: int, decision: str, when: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"{level}-{at}", "decision": decision, "when": when}


def _contexts(count: int) -> Iterator[PolicyContext]:
    for at in range(count):
        yield PolicyContext(
            trigger="on_tool_request",
            run_id=f"run-{at}",
            task_id="task",
            tool_name=f"tool:{at % TOOLS}",
            tool_arguments={"target": {"zone": f"zone-{at % 300}", "id": at}, "n": at % 250},
            execution_metadata={
                "agent_intent": f"intent-{at % INTENTS}", "actor": {"role": f"role-{at % 200}"}, "at": at,
            },
        )  # fmt: skip


def _workspace() -> Workspace:
    intents = {
        f"intent-{at}": Intent(
            allow_tools=tuple(f"tool:{number}" for number in range(TOOLS) if number % INTENTS != at),
            approval_required_tools=(f"tool:{at}",),
        )
        for at in range(INTENTS)
    }
    layers = _layers()
    file = WorkspaceFile(
        agent_runtime=AgentRuntimeConfig(intents=intents),
        policies=Policies(default_decision=Decision.DENY, allow_loosening=True, rules=layers[0].rules),
        lanes=(Lane(id="lane", policies=LanePolicies(rules=layers[1].rules)),),
    )
    return replace(Workspace.empty(), file=file)


def _registry() -> ToolRegistry:
    registry = ToolRegistry()
    for at in range(TOOLS):

        @tool(f"tool:{at}", effect="read")
        def act(input: dict[str, Any], ctx: ToolContext) -> dict[str, Any]:
            """Do nothing."""
            return input

        registry.register(act)
    return registry


# --- how it is timed ------------------------------------------------------------------------------


def _p50(policy: CompiledPolicy, contexts: list[PolicyContext]) -> float:
    """Microseconds of the median decision."""
    times = []
    for context in contexts:
        begun = time.perf_counter_ns()
        policy.evaluate(context)
        times.append(time.perf_counter_ns() - begun)
    return median(times) / 1000


def _cold(contexts: list[PolicyContext]) -> float:
    return _p50(compile_policy([*_layers(), intent_layer(_workspace().intents)]), contexts)


def _ms(work: Callable[[], object]) -> float:
    begun = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begun) / 1e6


def _spread(rounds: int, value: Callable[[], float]) -> Spread:
    value()
    return Spread.of(value() for _ in range(rounds))


FIGURE = Figure("policy", "one decision, a listing, and getting ready", _measure)
