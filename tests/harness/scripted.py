"""Runs the real engine over a script of turns and tool outputs: real SQL, kernel, tools and workers' code.

What is replaced is what lies outside: the model's answers, at the provider port; the broker, by a publisher
that shuffles, repeats and loses messages; the passing of time, by a clock that a test sets.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import text

from runtime import ToolContext, ToolError, ToolOutput, tool
from runtime.agent_runtime import AgentRuntime
from runtime.core.model import TURN_TOOL
from runtime.core.profile import ResolvedProfile
from runtime.core.turn import ProviderRequest
from runtime.core.turn_output import TurnOutput
from runtime.engine.handle import SessionHandle
from runtime.engine.sweep import sweep
from runtime.errors import ErrorCode
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call, Verdict, VerdictKind
from runtime.providers.client import ProviderClient
from runtime.providers.errors import ProviderError
from runtime.settings import Settings
from runtime.store.clock import Clock
from runtime.store.engine import Database
from runtime.store.migrate import upgrade
from runtime.tools.declare import ToolDefinition
from tests.harness.inline import Canvas

LINEAR = "session"
"""The name under which a script has the turns of a linear session or a loop."""

ROUNDS = 200
SWEEP_EVERY_MS = 6_000
"""How much later each sweep comes; more than a writer's own message is waited for."""


# --- the script -----------------------------------------------------------------------------------


@dataclass(slots=True)
class Script:
    """What the model says and the tools return, node by node; what was asked and answered so far.

    Attributes:
        turns: The turns of each node; one that runs out of them says that it is done.
        linear: Whether there is one conversation, whatever its node is called.
        calls: Every call that the kernel was asked about, in order, in the form of the records.
        request_ids: The script's name of each approval request that the kernel made.
    """

    turns: Mapping[str, Sequence[Mapping[str, Any]]]
    linear: bool
    calls: list[dict[str, Any]] = field(default_factory=list)
    request_ids: dict[str, str] = field(default_factory=dict)
    _taken: dict[str, int] = field(default_factory=dict)
    _requested: dict[str, list[Mapping[str, Any]]] = field(default_factory=dict)

    def node(self, node_id: str) -> str:
        """The script's name of a node."""
        return LINEAR if self.linear else node_id

    def next_turn(self, node: str) -> Mapping[str, Any]:
        """What the model does next in a node."""
        taken = self._taken.get(node, 0)
        self._taken[node] = taken + 1
        turns = self.turns.get(node, ())
        turn = turns[taken] if taken < len(turns) else {"reply": "done"}
        if "tool" in turn:
            self._requested.setdefault(node, []).append(turn)
        return turn

    def requested(self, node: str, call_id: str) -> Mapping[str, Any]:
        """The turn that asked for a call, by the call's id, which counts them from 1."""
        return self._requested[node][int(call_id.rpartition("-")[2]) - 1]

    @property
    def tool_names(self) -> list[str]:
        """All tools that are asked for."""
        asked = [turn["tool"]["name"] for turns in self.turns.values() for turn in turns if "tool" in turn]
        return sorted({name for name in asked if name != TURN_TOOL})

    def approval_rules(self) -> Iterator[dict[str, Any]]:
        """The policy that has the kernel park each call that the script wants parked, and no other."""
        for node, turns in self.turns.items():
            for index, turn in enumerate(turns):
                if asks_for_approval(turn):
                    where = {"agent_workflow_node_id": node, "agent_turn_index": index}
                    seen = [{"metadata_equals": {"path": [k], "value": v}} for k, v in where.items()]
                    yield {
                        "id": f"{node}-{index}",
                        "decision": "approval_required",
                        "reason": turn["tool_output"]["error"].get("message", "needs approval"),
                        "when": {"all": [{"tool_name_equals": turn["tool"]["name"]}, *seen]},
                    }


def asks_for_approval(turn: Mapping[str, Any]) -> bool:
    """Whether a call of the script ends with APPROVAL_REQUIRED."""
    error = (turn.get("tool_output") or {}).get("error") or {}
    return bool("tool" in turn and error.get("code") == ErrorCode.APPROVAL_REQUIRED)


# --- the ports ------------------------------------------------------------------------------------


class ScriptedModel(ProviderClient):
    """Answers as the script says; what it says goes through the real client and normaliser.

    The profile names the node: each node of a scripted session has one of its own.
    """

    def __init__(self, script: Script, nodes: Mapping[str, str]) -> None:
        super().__init__(httpx.MockTransport(self._answer))
        self._script = script
        self._nodes = nodes
        self._turn: Mapping[str, Any] = {}

    def execute(self, resolved: ResolvedProfile, request: ProviderRequest, **options: Any) -> TurnOutput:
        """Make the next turn of the node whose profile this is."""
        if self._script.calls:
            self._script.calls[-1]["message_roles"] = [message.role for message in request.messages]
        self._turn = self._script.next_turn(self._nodes[resolved.name])
        if failure := failed_turn(self._turn):
            raise failure
        try:
            return super().execute(resolved, request, **options)
        except ProviderError as error:
            error.retryable = False  # a script tells each attempt
            raise

    def _answer(self, request: httpx.Request) -> httpx.Response:
        content = json.dumps(said(self._turn))
        return httpx.Response(200, json={"choices": [{"message": {"content": content}}]})


def failed_turn(turn: Mapping[str, Any]) -> ProviderError | None:
    """The error of a turn that fails."""
    if "turn_error" in turn:
        error = turn["turn_error"]
        return ProviderError(error["code"], error["message"], details=error.get("details"))
    if "turn_error_missing" in turn:
        return ProviderError(ErrorCode.PROVIDER_MALFORMED_RESPONSE, "the turn failed and did not say why")
    if "turn_raises" in turn:
        return ProviderError(ErrorCode.TOOL_EXECUTION_FAILED, str(turn["turn_raises"]))
    return None


def said(turn: Mapping[str, Any]) -> Any:
    """What the model answers in a turn that does not fail."""
    if "turn_payload" in turn:
        return turn["turn_payload"]
    answer = {"intent": turn.get("intent", "demo"), "assistant_message": turn.get("reply", "")}
    if "tool" in turn:
        return {"status": "tool_request", **answer, "requested_tool": turn["tool"]}
    return {"status": turn.get("status", "reply"), **answer}


class WitnessedHost(ToolHost):
    """The kernel; it notes what it is asked, and shows policy the node, as the reference does."""

    script: Script

    def decide(self, call: Call) -> Verdict:
        node = self.script.node(call.node_id)
        named = call.ctx.model_copy(
            update={"metadata": {**call.ctx.metadata, "agent_workflow_node_id": node}}
        )
        verdict = super().decide(replace(call, ctx=named))
        self.script.calls.append(noted(call, node))
        if verdict.kind is VerdictKind.PARK and verdict.request_id is not None:
            asked = self.script.requested(node, call.call_id)["tool_output"]["error"].get("details", {})
            self.script.request_ids[verdict.request_id] = asked.get("request_id", verdict.request_id)
        return verdict


def noted(call: Call, node: str) -> dict[str, Any]:
    """A call in the form of the records."""
    metadata = {"agent_turn_index": call.turn_index, "agent_tool_call_count": call.tool_calls}
    if call.tool_name == TURN_TOOL:
        return {"node": node, "tool": call.tool_name, "metadata": metadata}
    metadata["agent_intent"] = call.intent
    return {"node": node, "tool": call.tool_name, "metadata": metadata, "input": call.input}


def scripted_tool(name: str, script: Script) -> ToolDefinition:
    """A real tool whose outputs are the script's."""

    @tool(name, description=f"The tool {name} of a script.")
    def handler(input: dict, ctx: ToolContext):  # type: ignore[no-untyped-def, type-arg]
        turn = script.requested(script.node(ctx.node_id), ctx.call_id)
        if "tool_raises" in turn:
            raise RuntimeError(turn["tool_raises"])
        output = turn.get("tool_output", {})
        if asks_for_approval(turn):
            return {"ok": True}  # the approved call runs; the script knows no output of it
        if output.get("success") is True:
            return output.get("data")
        error = output.get("error")
        if error is None:
            return ToolOutput(success=False)
        raise ToolError(error["message"], code=error["code"], details=error.get("details"))

    return handler


# --- the stage ------------------------------------------------------------------------------------


def milliseconds(instant: str) -> int:
    """An RFC 3339 instant in milliseconds since the epoch."""
    return round(datetime.fromisoformat(instant).timestamp() * 1000)


@dataclass(slots=True)
class Stage:
    """An open runtime on a script, with a clock that stands where it is put.

    Attributes:
        runtime: The runtime.
        script: Its script.
        canvas: Messages that wait for workers.
        instants: Where the clock was put so far, in milliseconds since the epoch.
    """

    runtime: AgentRuntime
    script: Script
    canvas: Canvas
    later: Database
    instants: list[int] = field(default_factory=list)

    def put_clock(self, instant: str) -> None:
        """Let it be that instant for whatever is done from now on."""
        self.instants.append(milliseconds(instant))
        self.runtime.parts.database.clock = Clock(self.instants[-1])

    def instant_of(self, at: int) -> int:
        """Where the clock stood at an instant that the engine recorded: real time passes while it runs."""
        return max((each for each in self.instants if each <= at), default=at)

    def run(self, session_id: str) -> None:
        """Deliver messages until nothing is left to do; sweeps find what messages that were lost led to.

        Only the sweeps see time pass. So nothing starts before it is due, and what is recorded is recorded
        at the instant at which the clock was put.
        """
        sweeping = replace(self.runtime.parts, database=self.later)
        now = self.instants[-1]
        for number in range(1, ROUNDS):
            self.canvas.drain()
            if not self._work_is_left(now):
                break
            self.later.clock = Clock(now + number * SWEEP_EVERY_MS)
            sweep(sweeping)
        else:
            raise AssertionError("the sweep does not bring the session to rest")
        self._repeat_an_advance(session_id)

    def _work_is_left(self, now: int) -> bool:
        with self.runtime.parts.database.reading() as connection:
            left = connection.execute(
                text(
                    "SELECT count(*) FROM step WHERE driver = 'worker' AND (status = 'running' "
                    "OR (status = 'ready' AND due_at <= :now) OR NOT propagated)"
                ),
                {"now": now},
            )
            return bool(left.scalar_one())

    def _repeat_an_advance(self, session_id: str) -> None:
        """An advance too many numbers what is not numbered yet, and changes nothing else."""
        handle = SessionHandle(self.runtime.parts, session_id)
        before = (handle.status(), handle.nodes())
        self.runtime.executor().advance(session_id)
        assert (handle.status(), handle.nodes()) == before
        assert not self.canvas.waiting


@contextmanager
def staged(
    nodes: Sequence[str],
    turns: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    linear: bool = False,
    seed: int | None = None,
) -> Iterator[Stage]:
    """Open a runtime on a script.

    Args:
        nodes: The names of the nodes; the n-th one's model profile is `profile_name(n)`.
        turns: The script.
        linear: Whether there is one conversation.
        seed: Of the order, repetition and loss of messages; without one they come once and in order.
    """
    script = Script(turns, linear)
    profiles = {profile_name(number): node for number, node in enumerate(nodes)}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "workspace.yaml").write_text(json.dumps(workspace(profiles, script)), encoding="utf-8")
        shutil.copy(Path(_migrated().name, "runtime.db"), folder)
        settings = Settings(
            database_url=f"sqlite:///{folder / 'runtime.db'}",
            workspace=folder / "workspace.yaml",
            state_dir=folder,
            republish_seconds=1,
            republish_max_seconds=2,
        )
        later = Database(settings.database_url)
        model = ScriptedModel(script, profiles)
        tools = [scripted_tool(name, script) for name in script.tool_names]
        with AgentRuntime.open(
            settings.workspace, settings=settings, tools=tools, environ={"KEY": "test-key"}, provider=model
        ) as runtime:
            host = WitnessedHost(runtime.workspace, runtime.registry)
            host.script = script
            runtime.parts.host = host
            yield Stage(runtime, script, Canvas(runtime, seed), later)
        later.close()


def profile_name(number: int) -> str:
    """The model profile of the n-th node."""
    return f"node-{number}"


def workspace(profiles: Mapping[str, str], script: Script) -> dict[str, Any]:
    """A workspace file that allows all but what the script wants approved."""
    profile = {
        "provider": "openai_compatible",
        "model": "scripted",
        "api_key_env": "KEY",
        "base_url": "http://model.test:4010/v1",
        "tool_mode": "prompt",
    }
    network = {"type": "network", "posture": "allowlist", "allowlist_entries": ["model.test:4010"]}
    return {
        "agent_runtime": {"models": dict.fromkeys(profiles, profile)},
        "security": {"allowed_scopes": [network]},
        "policies": {"default_decision": "allow", "rules": list(script.approval_rules())},
    }


@cache
def _migrated() -> tempfile.TemporaryDirectory[str]:
    """A folder with a migrated database to copy; it lasts as long as this process."""
    folder = tempfile.TemporaryDirectory()
    opened = Database(f"sqlite:///{folder.name}/runtime.db")
    upgrade(opened)
    opened.close()
    return folder
