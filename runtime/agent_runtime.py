"""The composition root: opens settings, workspace, database, Redis and tools, and wires them together."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from celery import Celery

from runtime.core.chain import Content, Verification
from runtime.core.model import ExecutionContext, ToolOutput, WorkflowNode
from runtime.engine import host
from runtime.engine.approvals import Resolution, resolve
from runtime.engine.executor import Executor
from runtime.engine.forks import fork_session
from runtime.engine.handle import SessionHandle, TurnHandle
from runtime.engine.host_crashes import sweep_crashed
from runtime.engine.identity import admit, turn_session_id
from runtime.engine.leases import Leases
from runtime.engine.parts import Parts, ToolRunner
from runtime.engine.resuming import resume_session
from runtime.engine.sessions import Definition, start_session
from runtime.engine.standing import NewGrant, end_grant, make_grant
from runtime.engine.votes import Answer
from runtime.errors import ConfigurationError, InvalidInput
from runtime.kernel.tool_host import ToolHost
from runtime.live.application import check_application
from runtime.live.hints import Hint, Publisher
from runtime.live.publisher import CeleryPublisher, NowherePublisher, producer_app
from runtime.live.redis_live import Live
from runtime.live.stack import recorded_redis_url
from runtime.providers.client import ProviderClient
from runtime.settings import Settings
from runtime.store import workspaces
from runtime.store.approvals import Approval, list_approvals
from runtime.store.engine import Database
from runtime.store.evidence import verify_session
from runtime.store.grants import StandingGrant, list_grants
from runtime.store.migrate import ensure_schema
from runtime.tools.declare import ToolDefinition
from runtime.tools.process import ToolSetup
from runtime.tools.registry import ToolRegistry
from runtime.tools.runner import InProcessRunner, ProcessRunner
from runtime.workspace import Workspace, load_workspace

logger = logging.getLogger(__name__)

UNSET: Any = object()
"""Stands for an argument that was not given, where ``None`` is a value."""


class AgentRuntime:
    """Governed agents on Celery, Redis and SQL; one object per process, safe to share among threads.

    Open it with `AgentRuntime.open`; it is a context manager, synchronous and asynchronous.

    Attributes:
        settings: Where things are.
        workspace: The ceiling of everything that may run.
        tool_host: The kernel; `tool_host.list_governed_tools(ctx)` lists what a context may call.
    """

    def __init__(
        self,
        parts: Parts,
        workspace: Workspace,
        registry: ToolRegistry,
        *,
        answers_established_by: str = "asserted",
    ) -> None:
        self.parts = parts
        self._answers_established_by = answers_established_by
        self.settings = parts.settings
        self.workspace = workspace
        self.registry = registry
        self.tool_host = parts.host

    @classmethod
    def open(
        cls,
        workspace: str | os.PathLike[str] | Workspace | None = None,
        *,
        database_url: str | None = None,
        redis_url: str | None = None,
        state_dir: str | os.PathLike[str] | None = None,
        settings: Settings | None = None,
        tools: Iterable[ToolDefinition] = (),
        celery_app: Celery | None = None,
        queue_prefix: str = "",
        environ: Mapping[str, str] | None = None,
        tool_processes: bool = False,
        provider: ProviderClient | None = None,
        answers_established_by: str = "asserted",
    ) -> AgentRuntime:
        """Attach to a database, a Redis and a workspace file. Nothing is started.

        Arguments win over ``AGENT_RUNTIME_*`` variables, which win over defaults.

        Args:
            workspace: Path of the workspace file, or a loaded one.
            database_url: SQLAlchemy URL; default: SQLite under the state directory.
            redis_url: Redis URL; default: the embedded server that ``dev`` recorded.
            state_dir: Directory of the embedded defaults.
            settings: All settings at once, instead of the above.
            tools: Tools beside those of the workspace file's modules; only host-driven calls can use them,
                unless the workers load them too.
            celery_app: Publish through this application instead of one of our own.
            queue_prefix: Put before the name of each queue, as given to ``tasks.register``.
            environ: Where model keys are read; default: the process's environment.
            tool_processes: Run tools in processes of their own, as workers do.
            provider: Makes the model calls, for example over another transport; default: over the network.
            answers_established_by: How it is known who answers approval requests through this object:
                ``asserted`` (the caller says so), or ``http-auth`` where the application authenticates
                people itself and passes no other names on. Each answer's evidence says it.

        Raises:
            ConfigurationError: If a setting, the workspace file or a tool is wrong, or ``celery_app`` cannot
                carry the runtime.
            StoreUnavailable: If the database cannot be reached or lacks the current schema.
        """
        if celery_app is not None:
            check_application(celery_app)
        if answers_established_by not in ("asserted", "http-auth"):
            raise ConfigurationError(
                f"answers_established_by is {str(answers_established_by)[:40]!r}; say 'http-auth' where the "
                "application authenticates who answers, else leave it out"
            )
        settings = settings or Settings.load(
            database_url=database_url,
            redis_url=redis_url,
            state_dir=None if state_dir is None else Path(state_dir),
            workspace=Path(workspace) if isinstance(workspace, str | os.PathLike) else None,
        )
        loaded = workspace if isinstance(workspace, Workspace) else load_workspace(settings.workspace)
        registry = ToolRegistry()
        registry.load_modules(loaded.tools.modules, loaded.base_dir)
        for definition in tools:
            registry.register(definition)
        loaded.check_tools([*(each.name for each in registry)])
        redis_address = settings.redis_url or recorded_redis_url(settings.state_dir)
        environment = os.environ if environ is None else environ
        database = Database(settings.database_url)
        with ExitStack() as unless_opened:
            unless_opened.callback(database.close)
            ensure_schema(database)
            parts = Parts(
                settings=settings,
                database=database,
                live=Live(redis_address),
                publisher=_publisher(redis_address, celery_app, queue_prefix),
                host=ToolHost(loaded, registry),
                provider=provider or ProviderClient(),
                runner=_runner(loaded, registry, environment) if tool_processes else InProcessRunner(),
                leases=Leases(database, settings.lease_seconds, settings.heartbeat_seconds),
                environ=environment,
            )
            if loaded.path is not None:
                workspaces.activate_first(database, loaded.hash, str(loaded.path))
            sweep_crashed(parts)
            unless_opened.pop_all()
        return cls(parts, loaded, registry, answers_established_by=answers_established_by)

    # --- host-driven ------------------------------------------------------------------------------

    def register(self, *definitions: ToolDefinition) -> None:
        """Add tools that host-driven calls in this process may use.

        Raises:
            ConfigurationError: If another tool has the name.
        """
        for definition in definitions:
            self.registry.register(definition)

    def execute_tool(self, name: str, input: Any, ctx: ExecutionContext | Mapping[str, Any]) -> ToolOutput:
        """Make one governed call in this process.

        Args:
            name: A registered tool, or ``agent:execute-turn``.
            input: Plain JSON, as the tool's schema says.
            ctx: On whose behalf, and what narrows it.

        Returns:
            The output; denials, parked approvals and failures are outputs with an ``error``. Its metadata
            names the ``step_id`` and says whether the end of the call was ``recorded``. If not, the call
            ended all the same, and ``warning`` says why its end is not in the database: do not repeat it as
            if it had not run.

        Raises:
            InvalidInput: On a malformed context, or a name that cannot be used.
            SessionConflict: If the session belongs to another principal, was cancelled, is paused or has
                ended, or too many calls of the same run and task were made at once; then the call did not
                run.
            StoreUnavailable: If evidence cannot be written; then the call did not run.
        """
        return host.execute(self.parts, name, input, as_context(ctx))

    def resolve_approval(
        self,
        *,
        request_id: str,
        approved: bool,
        approved_by: str,
        reason: str | None = None,
        input: Any = UNSET,
        response: Any = UNSET,
        digest: str | None = None,
    ) -> Resolution:
        """Answer an approval request; the answer that decides wins, and the approved call itself runs.

        One answer decides, unless the request's rule asks for more people who say the same; one denial always
        does. `Resolution.status` says whether the request still waits.

        Who answers is by nature somebody else than who asked, so no principal of the session is required:
        an answer shows nothing of the session but its id and the tool's name.

        Args:
            request_id: The request.
            approved: Whether the call may run.
            approved_by: The principal who answers; how that is known was said to `open`.
            reason: Why; it is kept, and told to the model.
            input: An input with which the call is to run instead of its own; it is checked and decided anew.
            response: An output that stands in for the call, which does not run then.
            digest: The digest of the call that was looked at, so that no other one is answered.

        Raises:
            ApprovalRefused: If the request is unknown, answered, expired or cancelled, is about another call,
                or does not take this person's answer; its ``code`` says which.
            InvalidInput: If the answer does not say which request, whether or who, or is no plain JSON.
        """
        answer = Answer(
            request_id,
            approved,
            approved_by,
            self._answers_established_by,
            reason,
            None if input is UNSET else Content.of(input),
            None if response is UNSET else Content.of(response),
            digest,
        )
        return resolve(self.parts, answer)

    def grant_standing(
        self,
        tool: str | Iterable[str],
        *,
        uses: int,
        expires_in: timedelta | str,
        granted_by: str,
        where: Mapping[str, Any] | None = None,
        reason: str | None = None,
    ) -> StandingGrant:
        """Approve beforehand the calls that fit, so many times and so long.

        Each use counts as the answer of who made the grant, under the request's own rule, and lets one exact
        call run; policy decides that call again, so a deny is never overridden.

        Args:
            tool: A tool's name, or patterns with ``*``, ``?`` and ``[...]``.
            uses: How many calls may run.
            expires_in: For how long, such as ``8h``.
            granted_by: The principal who grants; how that is known was said to `open`.
            where: What the input must be like, as a condition of policy rules on the arguments.
            reason: Why.

        Raises:
            InvalidInput: If anything of it cannot be used.
        """
        tools = (tool,) if isinstance(tool, str) else tuple(tool)
        by = self._answers_established_by
        return make_grant(self.parts, NewGrant(tools, where, uses, expires_in, granted_by, by, reason))

    def revoke_standing(self, grant_id: str, *, revoked_by: str) -> StandingGrant:
        """End a standing grant; calls that it let run are not affected.

        Raises:
            InvalidInput: If there is no such grant.
        """
        return end_grant(self.parts, grant_id, revoked_by)

    def standing_grants(self, *, active: bool = True) -> list[StandingGrant]:
        """Standing grants, the newest first; without ``active`` also those that let nothing more run."""
        return list_grants(self.parts.database, active=active)

    def approvals(self, session_id: str | None = None, status: str | None = "pending") -> list[Approval]:
        """Approval requests, those that expire first first.

        They are for those who answer, of every session: show an application's users their own only.
        """
        return list_approvals(self.parts.database, session_id=session_id, status=status)

    # --- worker-driven ----------------------------------------------------------------------------

    def start(self, definition: Definition) -> None:
        """Commit a session and publish its first steps; find it if it exists with this definition.

        Raises:
            InvalidInput: On a bad id, graph or turn input, or if neither a node nor the file names a model.
            SessionConflict: If the session exists with another definition or principal.
        """
        if definition.ctx.lane_id is not None:
            self.workspace.lane(definition.ctx.lane_id)
        if self.workspace.default_model is None:
            definition.require_models()
        limit = self.workspace.limits.max_turns_per_session
        self._publish(start_session(self.parts.database, definition, max_turns_limit=limit))

    def enqueue_turn(
        self,
        input: Mapping[str, Any],
        ctx: ExecutionContext | Mapping[str, Any],
        *,
        idempotency_key: str | None = None,
        priority: int = 0,
    ) -> TurnHandle:
        """Run one governed turn on a worker; the tools that it asks for are not run.

        Args:
            input: The input of ``agent:execute-turn``.
            ctx: On whose behalf; its session is made for this turn.
            idempotency_key: A repeat with the same session id, key and input is the same turn. Each key
                gets a session of its own; its id is in the handle. The default is the session id alone.
            priority: 0 (first) to 9.

        Raises:
            InvalidInput: On a malformed input.
            SessionConflict: If the session, or the key, stands for another input.
        """
        context = as_context(ctx)
        if not 0 <= priority <= 9:
            raise InvalidInput(f"priority is {priority}; give 0 (first) to 9 (last)")
        if idempotency_key is not None:
            session_id = turn_session_id(context.session_id, idempotency_key)
            context = context.model_copy(update={"session_id": session_id})
        given = {**input, "session_id": context.session_id}
        node = WorkflowNode(id="turn", execute_turn_input=given, max_turns=1)
        self.start(Definition("turn", (node,), context, priority=priority))
        return TurnHandle(self.parts, context.session_id)

    def resume(
        self,
        session_id: str,
        *,
        principal: str | None = None,
        messages: Iterable[Any] | None = None,
        idempotency_key: str | None = None,
        max_turns_per_invocation: int | None = None,
    ) -> SessionHandle:
        """Wake what is due, continue what is suspended, retry what failed, or say something more.

        See `runtime.engine.resuming.resume_session`.

        Args:
            session_id: The session.
            principal: Who resumes; must be the principal for whom the session was started.
            messages: For linear sessions: what is said next.
            idempotency_key: A repeat with the same key changes nothing.
            max_turns_per_invocation: Turn budget of the nodes that go on; default: each node's own.

        Raises:
            SessionNotFound: If there is no such session.
            SessionConflict: If it was cancelled, is paused, belongs to another principal, or is in the
                middle of a turn and cannot take messages.
        """
        resume_session(
            self.parts,
            session_id,
            principal=principal,
            messages=None if messages is None else list(messages),
            idempotency_key=idempotency_key,
            max_turns=max_turns_per_invocation,
        )
        return SessionHandle(self.parts, session_id)

    def pause(
        self, session_id: str, *, reason: str | None = None, principal: str | None = None
    ) -> SessionHandle:
        """Let nothing of a session start until `unpause`; running steps finish, and answers are kept.

        Args:
            session_id: The session.
            reason: Why; evidence keeps it.
            principal: Who asks, as for `session`.

        Raises:
            SessionNotFound: If there is no such session.
            SessionConflict: If it was cancelled, has ended, or belongs to another principal.
        """
        handle = self.session(session_id, principal=principal)
        handle.pause(reason)
        return handle

    def unpause(
        self, session_id: str, *, reason: str | None = None, principal: str | None = None
    ) -> SessionHandle:
        """Let a paused session go on; takes and raises what `pause` does."""
        handle = self.session(session_id, principal=principal)
        handle.unpause(reason)
        return handle

    def signal(
        self,
        session_id: str,
        node_id: str,
        messages: Iterable[Mapping[str, Any]],
        *,
        idempotency_key: str | None = None,
        principal: str | None = None,
    ) -> SessionHandle:
        """Hand messages to a node that has not ended; its next turn sees them.

        Args:
            session_id: The session.
            node_id: The node; an instance of a ``for_each``, not the group.
            messages: As in a turn's input.
            idempotency_key: A repeat with the same key for the same node changes nothing.
            principal: Who asks, as for `session`.

        Raises:
            SessionNotFound: If there is no such session.
            SessionConflict: If the session or the node has ended, takes no messages, or belongs to another
                principal.
            InvalidInput: On malformed messages.
        """
        handle = self.session(session_id, principal=principal)
        handle.signal(node_id, messages, idempotency_key=idempotency_key)
        return handle

    def fork(
        self,
        session_id: str,
        node_id: str,
        *,
        new_session_id: str,
        principal: str | None = None,
        allow_effects: bool = False,
        messages: Iterable[Mapping[str, Any]] | None = None,
    ) -> SessionHandle:
        """Run a node and what follows from it again, in a new session that keeps the rest.

        See `runtime.engine.forks.fork_session`.

        Args:
            session_id: The source, in any state.
            node_id: A node of its definition.
            new_session_id: The new session; a repeat with the same arguments is the same session.
            principal: Who forks; must be the principal for whom the source was started.
            allow_effects: Whether ``once`` calls that were made may be made again.
            messages: What the node is told instead.

        Raises:
            SessionNotFound: If there is no such source.
            SessionConflict: If it belongs to another principal, the new id is taken, or a ``once`` call
                would be made again.
            InvalidInput: On a bad id, an unknown node or malformed messages.
        """
        fork_session(
            self.parts,
            session_id,
            node_id,
            new_session_id=new_session_id,
            principal=principal,
            allow_effects=allow_effects,
            messages=None if messages is None else list(messages),
        )
        return SessionHandle(self.parts, new_session_id)

    def session(self, session_id: str, *, principal: str | None = None) -> SessionHandle:
        """The handle of an existing session; what it reads and cancels is on behalf of the principal.

        Args:
            session_id: The session.
            principal: Who asks. A session that was started for a principal is shown to that one only; one
                that was started for nobody in particular is shown to all who can name it.

        Raises:
            SessionNotFound: If there is no such session.
            SessionConflict: If it belongs to another principal.
        """
        admit(self.parts.database, session_id, principal)
        return SessionHandle(self.parts, session_id)

    def executor(self) -> Executor:
        """What the tasks of a worker run."""
        return Executor(self.parts)

    # --- evidence, workspace ----------------------------------------------------------------------

    def verify(self, session_id: str, *, principal: str | None = None) -> Verification:
        """Recompute a session's evidence.

        Args:
            session_id: The session.
            principal: Who asks, as for `session`.

        Raises:
            SessionNotFound: If there is no such session.
            SessionConflict: If it belongs to another principal.
        """
        admit(self.parts.database, session_id, principal)
        return verify_session(self.parts.database, session_id)

    def activate_workspace(self) -> list[str]:
        """Let workers run under this workspace file; return the hashes that are active now."""
        return workspaces.activate(self.parts.database, self.workspace.hash, str(self.workspace.path))

    def workspace_active(self) -> bool:
        """Whether workers run under this workspace file."""
        return workspaces.is_active(self.parts.database, self.workspace.hash)

    # --- life -------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close connections and idle tool processes."""
        self.parts.leases.close()
        self.parts.provider.close()
        self.parts.live.close()
        close = getattr(self.parts.runner, "close", None)
        if close is not None:
            close()
        self.parts.database.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def aexecute_tool(
        self, name: str, input: Any, ctx: ExecutionContext | Mapping[str, Any]
    ) -> ToolOutput:
        """`execute_tool` without blocking the event loop."""
        return await asyncio.to_thread(self.execute_tool, name, input, ctx)

    async def aresolve_approval(self, **answer: Any) -> Resolution:
        """`resolve_approval` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.resolve_approval(**answer))

    async def agrant_standing(self, tool: str | Iterable[str], **grant: Any) -> StandingGrant:
        """`grant_standing` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.grant_standing(tool, **grant))

    async def arevoke_standing(self, grant_id: str, *, revoked_by: str) -> StandingGrant:
        """`revoke_standing` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.revoke_standing(grant_id, revoked_by=revoked_by))

    async def aenqueue_turn(
        self, input: Mapping[str, Any], ctx: ExecutionContext | Mapping[str, Any], **options: Any
    ) -> TurnHandle:
        """`enqueue_turn` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.enqueue_turn(input, ctx, **options))

    async def aresume(self, session_id: str, **options: Any) -> SessionHandle:
        """`resume` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.resume(session_id, **options))

    async def apause(self, session_id: str, **options: Any) -> SessionHandle:
        """`pause` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.pause(session_id, **options))

    async def aunpause(self, session_id: str, **options: Any) -> SessionHandle:
        """`unpause` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.unpause(session_id, **options))

    async def asignal(
        self, session_id: str, node_id: str, messages: Iterable[Mapping[str, Any]], **options: Any
    ) -> SessionHandle:
        """`signal` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.signal(session_id, node_id, messages, **options))

    async def afork(self, session_id: str, node_id: str, **options: Any) -> SessionHandle:
        """`fork` without blocking the event loop."""
        return await asyncio.to_thread(lambda: self.fork(session_id, node_id, **options))

    def _publish(self, hints: list[Hint]) -> None:
        if hints and not self.parts.publisher.publish(hints):
            logger.warning(
                "the session is committed, but no worker could be told; it starts when the sweep finds it "
                "(is Redis reachable, and does 'agent-runtime dev' or a beat run?)"
            )


def as_context(ctx: ExecutionContext | Mapping[str, Any]) -> ExecutionContext:
    """Accept the plain dict of the documents as well.

    Raises:
        InvalidInput: If it is not a context.
    """
    if isinstance(ctx, ExecutionContext):
        return ctx
    try:
        return ExecutionContext.model_validate(dict(ctx))
    except ValueError as error:
        raise InvalidInput(f"ctx is not an execution context: {error}") from None


def _publisher(redis_url: str | None, app: Celery | None, prefix: str) -> Publisher:
    if app is not None:
        return CeleryPublisher(app, prefix)
    if redis_url is None:
        return NowherePublisher()
    return CeleryPublisher(producer_app(redis_url, prefix), prefix)


def _runner(workspace: Workspace, registry: ToolRegistry, environ: Mapping[str, str]) -> ToolRunner:
    return ProcessRunner(
        ToolSetup(
            modules=workspace.tools.modules,
            base_dir=workspace.base_dir,
            environ=dict(environ),
            secret_variables=workspace.secret_variables,
            digests={tool.name: tool.digest for tool in registry},
        )
    )
