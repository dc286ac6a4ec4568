"""What a tool is told about the call it serves."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, TYPE_CHECKING, Any

from pydantic import TypeAdapter

from runtime.core.canonical import canonical_json
from runtime.core.model import Json, Scope
from runtime.errors import ErrorCode, ToolError
from runtime.tools.guarded import open_file

if TYPE_CHECKING:
    import httpx

_SCOPES: TypeAdapter[tuple[Scope, ...]] = TypeAdapter(tuple[Scope, ...])


def _unheard(data: Json) -> None:
    """Where progress goes when nobody listens."""


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """The second argument of every tool.

    Attributes:
        session_id: The session that the call belongs to.
        node_id: The node of its graph.
        run_id: The application's run.
        task_id: The application's task within the run.
        call_id: Name of this call within its node.
        idempotency_key: The same for every run of this call; give it to the target, so that a repeat is the
            same effect.
        principal: Who asked.
        metadata: Plain JSON of the application.
        scopes: What the call may touch; `open` and `http` hold to it.
        root: Folder that path scopes are relative to, that of the workspace file; None if it is unknown.
        deadline: Reading of `time.monotonic` after which the call is cut off; None for no limit.
    """

    session_id: str
    node_id: str
    run_id: str
    task_id: str
    call_id: str
    idempotency_key: str
    principal: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    scopes: tuple[Scope, ...] = ()
    root: str | None = None
    deadline: float | None = None
    on_progress: Callable[[Json], None] = field(default=_unheard, repr=False, compare=False)

    def progress(self, data: Json) -> None:
        """Report how far the call has come.

        Args:
            data: Plain JSON.

        Raises:
            InvalidInput: If it is not plain, finite JSON.
        """
        canonical_json(data)
        self.on_progress(data)

    def open(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> IO[Any]:
        """Open a regular file within the call's path scopes, as the built-in ``open`` does.

        Args:
            path: Relative to the folder of the workspace file. Links are followed as far as they stay within
                the scopes.
            mode: As for ``open``: ``r`` needs a read scope, ``w``, ``a`` and ``x`` a write scope, ``+`` both.
            buffering: As for ``open``.
            encoding: As for ``open``.
            errors: As for ``open``.
            newline: As for ``open``.

        Raises:
            ToolError: ``SCOPE_DENIED``, if the path, or what it leads to, lies outside the scopes.
            OSError: As ``open``, for instance if there is no such file.
        """
        if self.root is None:
            raise ToolError(
                f"{os.fsdecode(path)!r} cannot be opened: this context has no root — make it with root=, the "
                "folder that path scopes are relative to",
                code=ErrorCode.SCOPE_DENIED,
            )
        return open_file(
            self.root,
            self.scopes,
            path,
            mode,
            buffering=buffering,
            encoding=encoding,
            errors=errors,
            newline=newline,
        )

    @cached_property
    def http(self) -> httpx.Client:
        """An HTTP client that reaches what the call's network scopes name, and raises `ToolError` otherwise.

        Example:
            >>> ctx.http.get("https://api.example.com/events", timeout=10).raise_for_status()
        """
        # Here, because few tools need it, and each tool process would pay for the import.
        from runtime.tools.guarded_http import scoped_client

        return scoped_client(self.scopes)

    def seconds_left(self) -> float | None:
        """How long the call may still take; None for no limit."""
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def to_json(self) -> dict[str, Json]:
        """All but the deadline and the listener, as plain JSON for `from_json`."""
        return {
            "session_id": self.session_id,
            "node_id": self.node_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "call_id": self.call_id,
            "idempotency_key": self.idempotency_key,
            "principal": self.principal,
            "metadata": dict(self.metadata),
            "scopes": [scope.model_dump(mode="json") for scope in self.scopes],
            "root": self.root,
        }

    @staticmethod
    def from_json(
        content: Mapping[str, Json],
        *,
        deadline: float | None = None,
        on_progress: Callable[[Json], None] = _unheard,
    ) -> ToolContext:
        """The inverse of `to_json`."""
        scopes = _SCOPES.validate_python(content["scopes"])
        return ToolContext(**{**content, "scopes": scopes}, deadline=deadline, on_progress=on_progress)
