"""What one whole decision of the kernel costs, and what its scopes add to it.

The workspace file, the lane, the task and the tool have 20 scopes each, and 200 policy rules stand in the
workspace file, the lane and the intents. Every decision is about another input and another context with other
task scopes; nothing is kept between two.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from bench.figure import BenchFailed, Figure, Line, Spread
from runtime.core.intents import Intent
from runtime.core.model import Decision, ExecutionContext, NetworkScope, PathScope, Scope
from runtime.core.policy import PolicyRule
from runtime.core.scope_grant import ScopeRule, compile_grant
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call, VerdictKind
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry
from runtime.workspace import Workspace
from runtime.workspace_model import (
    AgentRuntimeConfig,
    Lane,
    LanePolicies,
    Policies,
    SecurityConfig,
    WorkspaceFile,
)

if TYPE_CHECKING:
    from bench.lab import Lab

AREAS = 9
INTENTS = 10


def _measure(_lab: Lab, quick: bool) -> list[Line]:
    rounds, calls = (3, 500) if quick else (7, 5000)
    host = ToolHost(_workspace(), _registry())
    decided = [_call(at) for at in range(calls)]
    if any(host.decide(call).kind is not VerdictKind.RUN for call in decided[:10]):
        raise BenchFailed("the measured calls are refused — mend bench/scopes.py")
    rule = compile_grant(_ceiling(), _ceiling(), _required())
    # New patterns each round, so that no cache of patterns knows them.
    odd = iter([[_odd(at + 100 * number) for at in range(100)] for number in range(rounds + 1)])
    return [
        Line(
            "decide, 200 rules, 4 × 20 scopes", "µs p50",
            _spread(rounds, lambda: _p50(host.decide, decided)), at_most=100,
        ),
        Line(
            "grant 20 of 4 × 20 scopes", "µs p50",
            _spread(rounds, lambda: _p50(rule.under, [call.ctx.allowed_scopes for call in decided])),
        ),
        Line(
            "grant, unseen patterns with braces", "µs p50",
            _spread(rounds, lambda: _p50(rule.under, next(odd))),
        ),
        Line("compile the scopes of a tool", "µs p50", _spread(rounds, lambda: _p50(_compile, range(50)))),
    ]  # fmt: skip


# --- what is decided ------------------------------------------------------------------------------


def _paths(ending: str, access: Literal["read", "write"]) -> list[PathScope]:
    return [PathScope(pattern=f"area-{at}/{ending}", access=access) for at in range(AREAS)]


def _net(*entries: str) -> NetworkScope:
    return NetworkScope(posture="allowlist", allowlist_entries=entries)


def _ceiling() -> list[Scope]:
    return [
        *_paths("**", "read"),
        *_paths("**", "write"),
        _net("*.example.com:443", "10.0.0.0/8:5432"),
        _net("model.internal"),
    ]


def _required() -> list[Scope]:
    return [
        *_paths("in/*.csv", "read"),
        *_paths("out/**", "write"),
        _net("api.example.com:443"),
        _net("10.0.0.7:5432"),
    ]


def _task(at: int) -> tuple[Scope, ...]:
    return (
        *_paths("in/**" if at % 2 else "**", "read")[:-1],
        PathScope(pattern=f"area-{AREAS - 1}/**", access="read"),
        *_paths("out/**", "write")[:-1],
        PathScope(pattern=f"{{area-{AREAS - 1},own-{at % 100}}}/**", access="write"),
        _net("api.example.com:443", f"own-{at}.example.com:443"),
        _net("10.0.0.0/24:5432"),
    )


def _odd(at: int) -> tuple[Scope, ...]:
    return (
        *_paths(f"{{in,new-{at}}}/*.csv", "read"),
        *_paths(f"{{out,new-{at}}}/**", "write"),
        _net("api.example.com:443"),
        _net(f"10.0.0.0/24:1-{5432 + at}"),
    )


def _call(at: int) -> Call:
    ctx = ExecutionContext(
        run_id="bench",
        task_id="bench",
        session_id=f"session-{at}",
        lane_id="lane",
        allowed_scopes=_task(at),
        metadata={"actor": {"role": f"role-{at % 200}"}, "at": at},
    )
    return Call(
        tool_name="bench:report",
        input={"zone": f"zone-{at % 300}", "n": at, "rows": [at, at + 1]},
        ctx=ctx,
        session_id=ctx.session_id,
        node_id="node",
        step_id=f"step-{at}",
        call_id=f"call-{at}",
        intent=f"intent-{at % INTENTS}",
        turn_index=1,
        tool_calls=1,
        now=0,
    )


class Wish(BaseModel):
    """The input of the measured tool."""

    zone: str
    n: int
    rows: list[int]


def _rules(level: str, count: int) -> tuple[PolicyRule, ...]:
    conditions: tuple[Callable[[int], dict[str, Any]], ...] = (
        lambda at: {"tool_name_equals": f"other:{at}"},
        lambda at: {"argument_equals": {"path": ["zone"], "value": f"zone-{400 + at}"}},
        lambda at: {"metadata_equals": {"path": ["actor", "role"], "value": f"role-{300 + at}"}},
    )
    return tuple(
        PolicyRule.model_validate(
            {"id": f"{level}-{at}", "decision": "deny", "when": conditions[at % len(conditions)](at)}
        )
        for at in range(count)
    )


def _workspace() -> Workspace:
    intents = {f"intent-{at}": Intent(allow_tools=("bench:report",)) for at in range(INTENTS)}
    file = WorkspaceFile(
        agent_runtime=AgentRuntimeConfig(intents=intents),
        security=SecurityConfig(allowed_scopes=tuple(_ceiling())),
        policies=Policies(default_decision=Decision.ALLOW, rules=_rules("workspace", 100)),
        lanes=(
            Lane(
                id="lane",
                allowed_scopes=tuple(_ceiling()),
                policies=LanePolicies(rules=_rules("lane", 80)),
            ),
        ),
    )
    return replace(Workspace.empty(), file=file)


def _registry() -> ToolRegistry:
    @tool("bench:report", effect="read", scopes=_required())
    def report(input: Wish, ctx: ToolContext) -> Wish:
        """Do nothing."""
        return input

    return ToolRegistry([report])


# --- how it is timed ------------------------------------------------------------------------------


def _compile(_at: int) -> ScopeRule:
    return compile_grant(_ceiling(), _ceiling(), _required())


def _p50(work: Callable[[Any], object], given: Sequence[Any]) -> float:
    """Microseconds of the median."""
    times = []
    for each in given:
        begun = time.perf_counter_ns()
        work(each)
        times.append(time.perf_counter_ns() - begun)
    return median(times) / 1000


def _spread(rounds: int, value: Callable[[], float]) -> Spread:
    value()
    return Spread.of(value() for _ in range(rounds))


FIGURE = Figure("scopes", "one whole decision, and the scopes of it", _measure)
