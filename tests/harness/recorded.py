"""A runtime for recorded calls: real kernel, engine and SQL under the tools, scopes and policy of a record.

What is replaced is what a record prescribes: the layers of policy, at the kernel's port; what the tools
return; and, where a record wants evidence that cannot be written, the commit. What was asked is noted.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from sqlalchemy import text

from runtime import ToolContext, ToolOutput, tool
from runtime.agent_runtime import AgentRuntime
from runtime.core.conditions import PolicyContext
from runtime.core.policy import CompiledPolicy, PolicyForecast, PolicyLayer, PolicyResult, compile_policy
from runtime.errors import StoreUnavailable
from runtime.kernel.tool_host import ToolHost
from runtime.settings import Settings
from runtime.store.crashpoints import Transition
from runtime.store.engine import Database
from runtime.tools.declare import ToolDefinition
from tests.harness.scripted import _migrated


@dataclass(slots=True)
class Notes:
    """What was asked of the tools and of policy, in order.

    Attributes:
        handled: Inputs that handlers received.
        decided: Calls that policy was asked about; the arguments are None where they are no object.
        reported: What the handler of the latest call returned; None if none did.
    """

    handled: list[dict[str, Any]] = field(default_factory=list)
    decided: list[dict[str, Any]] = field(default_factory=list)
    reported: Any = None


# --- the ports ------------------------------------------------------------------------------------


class NotedPolicy:
    """Compiled layers; notes what they are asked."""

    def __init__(self, policy: CompiledPolicy, notes: Notes) -> None:
        self._policy = policy
        self._notes = notes

    def evaluate(self, context: PolicyContext) -> PolicyResult:
        """Decide a call."""
        self._note(context, context.tool_arguments)
        return self._policy.evaluate(context)

    def evaluate_unknown_arguments(self, context: PolicyContext) -> PolicyForecast:
        """Say what may be decided of a call, for a listing."""
        self._note(context, None)
        return self._policy.evaluate_unknown_arguments(context)

    def matching(self, context: PolicyContext) -> list[Any]:
        """The rules that match a call, unnoted."""
        return list(self._policy.evaluate(context).decisions)

    def _note(self, context: PolicyContext, arguments: Any) -> None:
        shown = arguments if isinstance(arguments, dict) else None
        self._notes.decided.append({"tool": context.tool_name, "tool_arguments": shown})


class RecordedHost(ToolHost):
    """The kernel under the layers of a record, whichever levels they are of."""

    recorded: NotedPolicy

    def policy(self, lane_id: str | None) -> Any:
        """The record's layers, in every lane."""
        return self.recorded


class FailingCommits:
    """Lets the commits of some kinds of evidence fail, as a full disk would; counts the failures.

    Args:
        kinds: Kinds of receipts. The start has a commit of its own; progress and finish share one.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        commits: set[Transition] = set()
        for kind in kinds:
            starts = kind == "tool_call_started"
            commits |= {Transition.HOST_START} if starts else {Transition.HOST_RECORD, Transition.PARK}
        self._points = {commit.points[0] for commit in commits}
        self.failed = 0

    def reach(self, point: str) -> None:
        """Pass a point of a transaction."""
        if point in self._points:
            self.failed += 1
            raise StoreUnavailable("the disk is full; free some space")


class Killed(BaseException):
    """This process was killed."""


class Killer:
    """Kills the process where it would record the end of a call."""

    def reach(self, point: str) -> None:
        """Pass a point of a transaction, or die there."""
        if point == Transition.HOST_RECORD.points[0]:
            raise Killed


def recorded_tool(given: Mapping[str, Any], notes: Notes) -> ToolDefinition:
    """A real tool with the schemas and scopes of a record, which does what the record says."""
    name, does = given["name"], given["handler"]

    @tool(
        name,
        description=f"The tool {name} of a record.",
        scopes=given.get("required_scopes", ()),
        scopes_mode="any",
        effect="idempotent",
        input_schema=given.get("input_schema"),
        output_schema=given.get("output_schema"),
    )
    def handler(input: dict, ctx: ToolContext):  # type: ignore[no-untyped-def, type-arg]
        if does.get("subprocess"):
            raise RuntimeError(f"no dispatcher runs {name} in a process of its own")
        notes.handled.append({"tool": name, "input": input})
        if "raises" in does:
            raise RuntimeError(does["raises"])
        notes.reported = _returned(does, input)
        return as_output(notes.reported)

    return handler


def _returned(does: Mapping[str, Any], input: Any) -> Any:
    if does.get("echo"):
        return {"success": True, "data": input}
    return does["returns"] if "returns" in does else does["returns_raw"]


def as_output(returned: Any) -> ToolOutput:
    """An output in the form of the records; what has another form is, in ours, a failure without error."""
    try:
        return ToolOutput.model_validate_json(json.dumps(returned), strict=True)
    except ValidationError:
        return ToolOutput(success=False)


# --- the stage ------------------------------------------------------------------------------------


@dataclass(slots=True)
class RecordedStage:
    """A workspace folder with a database, and the runtime that is open on them.

    Attributes:
        folder: Where the workspace file and the database are.
        tools: What is registered.
        layers: Policy.
        notes: What was asked so far.
        database: The database, for reading.
        runtime: The open runtime; None while it is closed.
    """

    folder: Path
    database: Database
    tools: Sequence[ToolDefinition]
    layers: Sequence[PolicyLayer]
    notes: Notes
    runtime: AgentRuntime | None = None

    @property
    def path(self) -> Path:
        """The workspace file."""
        return self.folder / "workspace.yaml"

    def open(self) -> AgentRuntime:
        """Start up: open the runtime on what is there."""
        settings = Settings(
            database_url=str(self.database.url),
            workspace=self.path,
            state_dir=self.folder / ".agent-runtime",
        )
        opened = AgentRuntime.open(self.path, settings=settings, tools=self.tools, environ={})
        host = RecordedHost(opened.workspace, opened.registry)
        host.recorded = NotedPolicy(compile_policy(self.layers), self.notes)
        opened.parts.host = opened.tool_host = host
        self.runtime = opened
        return opened

    @property
    def opened(self) -> AgentRuntime:
        """The runtime; started up if need be."""
        return self.runtime or self.open()

    @property
    def policy(self) -> NotedPolicy:
        """What decides."""
        host = self.opened.parts.host
        assert isinstance(host, RecordedHost)
        return host.recorded

    def restart(self) -> AgentRuntime:
        """Let the process end, and start up anew."""
        self.close()
        return self.open()

    def close(self) -> None:
        """Let the process end."""
        if self.runtime is not None:
            self.runtime.close()
        self.runtime = None

    def rows(self, sql: str, **values: Any) -> list[Any]:
        """The rows of a query; they are there whether or not a runtime is open."""
        with self.database.reading() as connection:
            return list(connection.execute(text(sql), values).all())


@contextmanager
def recorded_stage(
    workspace: Mapping[str, Any],
    tools: Sequence[Mapping[str, Any]],
    layers: Sequence[PolicyLayer],
) -> Iterator[RecordedStage]:
    """Make a folder and open a runtime there.

    Args:
        workspace: Content of the workspace file.
        tools: Tools in the form of the records.
        layers: Policy.
    """
    notes = Notes()
    with tempfile.TemporaryDirectory() as name:
        shutil.copy(Path(_migrated().name, "runtime.db"), name)
        database = Database(f"sqlite:///{name}/runtime.db")
        definitions = [recorded_tool(each, notes) for each in tools]
        stage = RecordedStage(Path(name), database, definitions, layers, notes)
        stage.path.write_text(json.dumps(workspace), encoding="utf-8")
        try:
            stage.open()
            yield stage
        finally:
            stage.close()
            database.close()
