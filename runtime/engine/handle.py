"""Handles: what `start_*` and `enqueue_turn` return, and how an application watches a session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from runtime.core.model import NodeStatus, SessionStatus, ToolOutput
from runtime.engine.control import cancel_session, pause_session, unpause_session
from runtime.engine.events import ENDED, Event, follow, wait_for
from runtime.engine.forks import fork_session
from runtime.engine.parts import Parts
from runtime.engine.signals import signal_node
from runtime.errors import SessionNotFound
from runtime.store.sessions import StoredNode, StoredSession, read_continuations, read_nodes, read_status


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node as applications see it.

    Attributes:
        id: Its id in the definition.
        status: Its state.
        reason: Why it waits or is suspended.
        turn_count: Turns made.
        tool_call_count: Tool calls asked for.
        result: The last turn's data, once completed.
        error: Code, message and details, if it failed.
        pending_request_id: The approval request it waits for.
        depends_on: Ids of the nodes it waits for.
        wake_at: Milliseconds since the epoch, if it is scheduled.
    """

    id: str
    status: NodeStatus
    reason: str | None
    turn_count: int
    tool_call_count: int
    result: Any
    error: Any
    pending_request_id: str | None
    depends_on: tuple[str, ...]
    wake_at: int | None


@dataclass(frozen=True, slots=True)
class SessionResult:
    """The end of a session.

    Attributes:
        session_id: The session.
        status: ``completed``, ``error`` or ``cancelled``.
        nodes: All nodes by id.
    """

    session_id: str
    status: SessionStatus
    nodes: dict[str, NodeView]

    def unwrap(self) -> dict[str, Any]:
        """Return each node's result, or raise if the session did not complete."""
        if self.status is not SessionStatus.COMPLETED:
            failed = next((node for node in self.nodes.values() if node.error), None)
            error: dict[str, Any] = (
                failed.error if failed else {"code": "SESSION_NOT_COMPLETED", "message": str(self.status)}
            )
            ToolOutput.failed(error["code"], error["message"], error.get("details")).unwrap()
        return {node.id: node.result for node in self.nodes.values()}


class SessionHandle:
    """Watches and steers one session; holds no connection between calls.

    A handle asks nobody who its holder is. Those that start and resume return, and that of
    `AgentRuntime.session`, were given to the session's principal. Who operates the deployment, and may see
    every session, makes one directly.

    Args:
        parts: The parts of this process.
        session_id: The session.
    """

    def __init__(self, parts: Parts, session_id: str) -> None:
        self._parts = parts
        self.session_id = session_id

    def status(self) -> SessionStatus:
        """The session's state now.

        Raises:
            SessionNotFound: If there is no such session.
        """
        return self._read()[1]

    def _read(self) -> tuple[StoredSession, SessionStatus]:
        found = read_status(self._parts.database, self.session_id)
        if found is None:
            raise SessionNotFound(f"no session {self.session_id!r}; start it first")
        return found

    def nodes(self) -> list[NodeView]:
        """The nodes in the order of their definition."""
        return [_view(node) for node in read_nodes(self._parts.database, self.session_id)]

    def continuations(self) -> list[dict[str, Any]]:
        """Why the session moved, in order: ``sequence kind node_id request_id at``."""
        return read_continuations(self._parts.database, self.session_id)

    def events(self, after: str | None = None, timeout: float | None = None) -> Iterator[Event]:
        """Follow the session's evidence until it ends; see `runtime.engine.events.follow`."""
        return follow(self._parts, self.session_id, after, timeout)

    def wait(self, until: Iterable[str] | None = None, timeout: float | None = None) -> SessionStatus:
        """Wait until the session is in one of the states, by default until it ended.

        Raises:
            WaitTimeout: If it takes longer than ``timeout`` seconds.
        """
        return wait_for(self._parts, self.session_id, frozenset(until or ENDED), timeout)

    def result(self, timeout: float | None = None) -> SessionResult:
        """Wait for the end and return it.

        Raises:
            WaitTimeout: If it takes longer than ``timeout`` seconds.
        """
        status = self.wait(timeout=timeout)
        return SessionResult(self.session_id, status, {node.id: node for node in self.nodes()})

    def cancel(self, reason: str | None = None) -> SessionStatus:
        """Stop what has not started; what is running may finish. Harmless to repeat."""
        cancel_session(self._parts, self.session_id, reason)
        return self.status()

    def pause(self, reason: str | None = None) -> SessionStatus:
        """Let nothing start until `unpause`; running steps finish, and answers are kept. Harmless to repeat.

        Raises:
            SessionConflict: If the session was cancelled or has ended.
        """
        pause_session(self._parts, self.session_id, reason)
        return self.status()

    def unpause(self, reason: str | None = None) -> SessionStatus:
        """Let a paused session go on, with all that became ready meanwhile. Harmless to repeat.

        Raises:
            SessionConflict: If the session was cancelled or has ended.
        """
        unpause_session(self._parts, self.session_id, reason)
        return self.status()

    def signal(
        self, node_id: str, messages: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> SessionStatus:
        """Hand messages to a node that has not ended; see `runtime.engine.signals.signal_node`.

        Raises:
            SessionConflict: If the session or the node has ended, or takes no messages.
            InvalidInput: On malformed messages.
        """
        signal_node(self._parts, self.session_id, node_id, list(messages), idempotency_key)
        return self.status()

    def fork(
        self,
        node_id: str,
        *,
        new_session_id: str,
        allow_effects: bool = False,
        messages: Iterable[Mapping[str, Any]] | None = None,
    ) -> SessionHandle:
        """Run a node and what follows from it again, in a new session that keeps the rest.

        See `runtime.engine.forks.fork_session`. The new session belongs to the principal of this one.

        Raises:
            SessionConflict: If the new id is taken, or a ``once`` call would be made again without
                ``allow_effects``.
            InvalidInput: On a bad id, an unknown node or malformed messages.
        """
        fork_session(
            self._parts,
            self.session_id,
            node_id,
            new_session_id=new_session_id,
            principal=self._read()[0].principal,
            allow_effects=allow_effects,
            messages=None if messages is None else list(messages),
        )
        return SessionHandle(self._parts, new_session_id)

    # --- thin async forms -------------------------------------------------------------------------

    async def astatus(self) -> SessionStatus:
        """`status` without blocking the event loop."""
        return await asyncio.to_thread(self.status)

    async def await_status(
        self, until: Iterable[str] | None = None, timeout: float | None = None
    ) -> SessionStatus:
        """`wait` without blocking the event loop."""
        return await asyncio.to_thread(self.wait, until, timeout)

    async def aresult(self, timeout: float | None = None) -> SessionResult:
        """`result` without blocking the event loop."""
        return await asyncio.to_thread(self.result, timeout)

    async def anodes(self) -> list[NodeView]:
        """`nodes` without blocking the event loop."""
        return await asyncio.to_thread(self.nodes)

    async def acancel(self, reason: str | None = None) -> SessionStatus:
        """`cancel` without blocking the event loop."""
        return await asyncio.to_thread(self.cancel, reason)

    async def apause(self, reason: str | None = None) -> SessionStatus:
        """`pause` without blocking the event loop."""
        return await asyncio.to_thread(self.pause, reason)

    async def aunpause(self, reason: str | None = None) -> SessionStatus:
        """`unpause` without blocking the event loop."""
        return await asyncio.to_thread(self.unpause, reason)

    async def asignal(
        self, node_id: str, messages: Iterable[Mapping[str, Any]], *, idempotency_key: str | None = None
    ) -> SessionStatus:
        """`signal` without blocking the event loop."""
        return await asyncio.to_thread(
            lambda: self.signal(node_id, messages, idempotency_key=idempotency_key)
        )

    async def afork(self, node_id: str, **options: Any) -> SessionHandle:
        """`fork` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.fork(node_id, **options))

    async def aevents(self, after: str | None = None, timeout: float | None = None) -> AsyncIterator[Event]:
        """`events` without blocking the event loop."""
        events = self.events(after, timeout)
        done = object()
        while (event := await asyncio.to_thread(next, events, done)) is not done:
            assert isinstance(event, Event)
            yield event


class TurnHandle(SessionHandle):
    """Watches one enqueued turn."""

    def output(self, timeout: float | None = None) -> ToolOutput:
        """Wait for the turn and return its output, as `execute_tool` would have.

        Raises:
            WaitTimeout: If it takes longer than ``timeout`` seconds.
        """
        node = next(iter(self.result(timeout).nodes.values()))
        if node.error is not None:
            return ToolOutput.failed(node.error["code"], node.error["message"], node.error.get("details"))
        return ToolOutput(success=True, data=node.result)

    async def aoutput(self, timeout: float | None = None) -> ToolOutput:
        """`output` without blocking the event loop."""
        return await asyncio.to_thread(self.output, timeout)


def _view(node: StoredNode) -> NodeView:
    return NodeView(
        id=node.id,
        status=node.status,
        reason=node.reason,
        turn_count=node.turns,
        tool_call_count=node.tool_calls,
        result=node.result,
        error=node.error,
        pending_request_id=node.pending_request_id,
        depends_on=node.depends_on,
        wake_at=node.wake_at,
    )
