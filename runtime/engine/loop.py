"""The host-driven loop: the application's process makes each turn and each tool call itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runtime.core.messages import create_tool_result_message
from runtime.core.model import TURN_TOOL, ExecutionContext, ToolFailure, ToolOutput
from runtime.core.text import storable
from runtime.engine import host
from runtime.engine.calls import catalog_names
from runtime.engine.parts import Parts
from runtime.engine.record import call_id
from runtime.errors import ErrorCode

DEFAULT_MAX_TURNS = 12


@dataclass(frozen=True, slots=True)
class LoopResult:
    """How a host-driven loop ended.

    Attributes:
        kind: ``completed``, ``approval_required`` or ``error``.
        turn_count: Turns that answered.
        tool_call_count: Tool calls made.
        messages: The conversation, to append to and go on with.
        history: One entry per turn: ``turn_index``, ``status``, and the call's id and success.
        final_turn: Data of the last turn.
        pending_request_id: The approval request that the loop waits for.
        requested_tool: The call that waits.
        error: Why the loop ended.
        stage: Where it ended: ``execute_turn`` or ``loop_limit``.
    """

    kind: str
    turn_count: int
    tool_call_count: int
    messages: list[dict[str, Any]]
    history: list[dict[str, Any]]
    final_turn: dict[str, Any] | None = None
    pending_request_id: str | None = None
    requested_tool: dict[str, Any] | None = None
    error: ToolFailure | None = None
    stage: str | None = None


@dataclass(slots=True)
class _Loop:
    parts: Parts
    input: dict[str, Any]
    ctx: ExecutionContext
    messages: list[dict[str, Any]]
    turns: int = 0
    calls: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    last: dict[str, Any] | None = None

    def run(self, max_turns: int) -> LoopResult:
        while self.turns < max_turns:
            output = self._turn()
            if output.error is not None:
                return self._end("error", error=output.error, stage="execute_turn")
            entry: dict[str, Any] = {"turn_index": self.turns, "status": output.data["status"]}
            self.turns += 1
            self.last = output.data
            requested = self._requested()
            self.history.append(entry)
            if not requested:
                return self._end("completed")
            for call in requested:
                parked = self._call(call, entry)
                if parked is not None:
                    return parked
        failure = ToolFailure(
            code=ErrorCode.LOOP_LIMIT_EXCEEDED,
            message=f"the loop made {max_turns} turns without an end; raise max_turns or simplify the task",
        )
        return self._end("error", error=failure, stage="loop_limit")

    def _turn(self) -> ToolOutput:
        return host.execute(
            self.parts,
            TURN_TOOL,
            {**self.input, "messages": self.messages},
            self._context({"agent_turn_index": self.turns, "agent_tool_call_count": self.calls}),
        )

    def _requested(self) -> list[dict[str, Any]]:
        assert self.last is not None
        if self.last["status"] != "tool_request":
            return []
        many: list[dict[str, Any]] = self.last.get("requested_tools") or []
        return many or [self.last["requested_tool"]]

    def _call(self, call: dict[str, Any], entry: dict[str, Any]) -> LoopResult | None:
        assert self.last is not None
        name = call_id(self.calls)
        self.calls += 1
        output = host.execute(
            self.parts,
            storable(call["name"]),
            call["input"],
            self._context(
                {
                    "agent_intent": self.last.get("intent"),
                    "agent_turn_index": self.turns - 1,
                    "agent_tool_call_count": self.calls,
                    "tool_call_id": name,
                }
            ),
            catalog=catalog_names(self.input),
        )
        entry |= {"tool_call_id": name, "tool_success": output.success}
        if output.error is not None and output.error.code == ErrorCode.APPROVAL_REQUIRED:
            return self._end(
                "approval_required",
                pending_request_id=output.error.details.get("request_id"),
                requested_tool=call,
            )
        if text := self.last.get("assistant_message"):
            self.messages.append({"role": "assistant", "content": text})
        self.messages.append(
            dict(create_tool_result_message(tool_name=call["name"], tool_call_id=name, output=output))
        )
        return None

    def _context(self, metadata: dict[str, Any]) -> ExecutionContext:
        return self.ctx.model_copy(update={"metadata": {**self.ctx.metadata, **metadata}})

    def _end(self, kind: str, **values: Any) -> LoopResult:
        return LoopResult(
            kind, self.turns, self.calls, self.messages, self.history, final_turn=self.last, **values
        )


def run_loop(
    parts: Parts, execute_turn_input: Mapping[str, Any], ctx: ExecutionContext, max_turns: int
) -> LoopResult:
    """Make turns and the calls they ask for until the model is done, a call waits, or a bound is met."""
    given = dict(execute_turn_input)
    messages = [dict(message) for message in given.pop("messages", [])]
    given.setdefault("session_id", ctx.session_id)
    return _Loop(parts, given, ctx, messages).run(max_turns)
