"""The workspace file: the ceiling of what agents may do, checked whole when it is loaded.

`load_workspace` reads it, `Workspace` is what the rest of the runtime asks. The form of the file is in
`runtime.workspace_model`, how it is read in `runtime.workspace_yaml`, what is said of a wrong one in
`runtime.workspace_check`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from runtime.core.canonical import digest
from runtime.core.intents import Intent
from runtime.core.model import Scope
from runtime.core.policy import PolicyLayer
from runtime.core.profile import ModelProfile
from runtime.errors import ConfigurationError, InvalidInput, SpecTampered
from runtime.workspace_check import validate
from runtime.workspace_model import (
    ApprovalsConfig,
    Lane,
    LimitsConfig,
    Schedule,
    ToolsConfig,
    WorkspaceFile,
)
from runtime.workspace_yaml import Document, Problem, read_yaml

MINIMAL_EXAMPLE = """\
agent_runtime:
  default_model: operations
  models:
    operations: {provider: openai_compatible, model: ops-assistant,
                 api_key_env: AGENT_RUNTIME_API_KEY, base_url: "http://127.0.0.1:4010/v1"}
security:
  allowed_scopes:
    - {type: network, posture: allowlist, allowlist_entries: ["127.0.0.1:4010"]}
policies: {default_decision: deny, rules: []}
"""

_SETTLED_NS = 1_000_000_000
"""A file this old cannot have been changed again within one tick of the file system's clock."""

_Stamp = tuple[int, int, int, int, int]


@dataclass(frozen=True, slots=True)
class Workspace:
    """A workspace file as it was when it was loaded.

    Attributes:
        path: Absolute path; None for `Workspace.empty`.
        hash: SHA-256 (hex) of the canonical JSON of what the file says, whatever its layout.
        file: Its content, validated.
    """

    path: Path | None
    hash: str
    file: WorkspaceFile
    _document: Document = field(repr=False, compare=False)
    _seen: list[_Stamp] = field(repr=False, compare=False)

    @staticmethod
    def empty() -> Workspace:
        """A workspace that allows nothing; used where there is no file."""
        return Workspace(None, digest({}), WorkspaceFile(), Document(value={}), [])

    @property
    def default_model(self) -> str | None:
        """Profile of turns that name none; a sole profile is the default."""
        config = self.file.agent_runtime
        if config.default_model is None and len(config.models) == 1:
            return next(iter(config.models))
        return config.default_model

    @property
    def models(self) -> Mapping[str, ModelProfile]:
        """Model profiles by name."""
        return self.file.agent_runtime.models

    @property
    def intents(self) -> Mapping[str, Intent]:
        """Intents by id, in the file's order."""
        return self.file.agent_runtime.intents

    @property
    def limits(self) -> LimitsConfig:
        """Upper bounds of every session."""
        return self.file.agent_runtime.limits

    @property
    def tools(self) -> ToolsConfig:
        """Where tools come from."""
        return self.file.agent_runtime.tools

    @property
    def approvals(self) -> ApprovalsConfig:
        """How approvals are asked for."""
        return self.file.agent_runtime.approvals

    @property
    def schedules(self) -> tuple[Schedule, ...]:
        """Sessions that start by the clock."""
        return self.file.agent_runtime.schedules

    @property
    def allowed_scopes(self) -> tuple[Scope, ...]:
        """What may be touched at all."""
        return self.file.security.allowed_scopes

    @property
    def base_dir(self) -> Path:
        """The directory that relative paths and tool files are beside."""
        return self.path.parent if self.path else Path.cwd()

    @property
    def secret_variables(self) -> frozenset[str]:
        """Names of the environment variables that hold keys, addresses and secrets; no tool gets them."""
        names = {"AGENT_RUNTIME_API_KEY", "AGENT_RUNTIME_BASE_URL"}
        for profile in self.models.values():
            names |= {name for name in (profile.api_key_env, profile.base_url_env) if name}
        if self.approvals.webhook is not None:
            names.add(self.approvals.webhook.secret_env)
        return frozenset(names)

    def lane(self, lane_id: str) -> Lane:
        """The lane of that id.

        Raises:
            ConfigurationError: If the file has none.
        """
        for lane in self.file.lanes:
            if lane.id == lane_id:
                return lane
        known = ", ".join(repr(lane.id) for lane in self.file.lanes) or "none"
        raise ConfigurationError(
            f"lane_id {lane_id!r}: {self._name} has no such lane (it has {known}) — add it under lanes"
        )

    def policy_layers(self, lane_id: str | None = None) -> tuple[PolicyLayer, ...]:
        """The file's policy layers for a call: the workspace's, then the lane's.

        Raises:
            ConfigurationError: If the file has no lane ``lane_id``.
        """
        policies = self.file.policies
        layers = [
            PolicyLayer(
                level="workspace",
                default_decision=policies.default_decision,
                allow_loosening=policies.allow_loosening,
                rules=policies.rules,
            )
        ]
        own = self.lane(lane_id).policies if lane_id is not None else None
        if own is not None:
            layers.append(
                PolicyLayer(
                    level="lane",
                    default_decision=own.default_decision,
                    allow_loosening=own.allow_loosening,
                    rules=own.rules,
                )
            )
        return tuple(layers)

    def check_tools(self, known: Collection[str]) -> None:
        """See that every tool that an intent names exists.

        Raises:
            ConfigurationError: Naming each one that does not, with its line.
        """
        problems = []
        for intent_id, intent in self.intents.items():
            for key in ("allow_tools", "approval_required_tools"):
                for index, name in enumerate(getattr(intent, key)):
                    if name.strip() not in known:
                        path = ("agent_runtime", "intents", intent_id, key, index)
                        fix = "declare it in one of tools.modules, or remove it"
                        text = f"no tool has the name {name!r} — {fix}"
                        problems.append(Problem(self._document.line(path), path, text))
        _refuse(self._name, problems)

    def ensure_unchanged(self) -> None:
        """See that the file still says what it said when it was loaded; another layout is no difference.

        Reads the file only when its status changed since it was last read.

        Raises:
            SpecTampered: If it says something else, cannot be read, or is gone.
        """
        if self.path is None:
            return
        try:
            if self._seen and self._seen[0] == _stamp(os.stat(self.path)):
                return
            text, stamp = _read(self.path)
            document = read_yaml(text)
            now = None if document.problems else digest(_content(document))
        except (OSError, UnicodeDecodeError, InvalidInput) as error:
            raise SpecTampered(
                f"{self.path} was loaded as {self.hash[:12]} and cannot be read any more "
                f"({type(error).__name__}) — restore it, or restart to load another one",
                details={"path": str(self.path), "expected": self.hash, "actual": None},
            ) from error
        if now != self.hash:
            raise SpecTampered(
                f"{self.path} was loaded as {self.hash[:12]} and now is {(now or 'not valid YAML')[:14]} — "
                "restore it, or restart to load the new one",
                details={"path": str(self.path), "expected": self.hash, "actual": now},
            )
        self._seen[:] = stamp

    @property
    def _name(self) -> str:
        return self.path.name if self.path else "the empty workspace"


def load_workspace(path: str | Path) -> Workspace:
    """Read and check a workspace file.

    Raises:
        ConfigurationError: If there is no such file, or it is wrong anywhere. All problems are reported at
            once, each as ``file:line: path.to.key: problem, value — fix``.
    """
    absolute = Path(path).expanduser().absolute()
    try:
        text, stamp = _read(absolute)
    except FileNotFoundError:
        raise ConfigurationError(
            f"there is no workspace file {absolute} — name another one (argument, --workspace or "
            f"AGENT_RUNTIME_WORKSPACE), or start with this one:\n\n{MINIMAL_EXAMPLE}"
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{absolute}: byte {error.start} is not UTF-8 — save the file as UTF-8"
        ) from None
    except OSError as error:
        raise ConfigurationError(
            f"{absolute} cannot be read ({error.strerror}) — name a file that this user may read"
        ) from error
    document = read_yaml(text)
    _refuse(absolute.name, document.problems)
    file, problems = validate(document, absolute.parent)
    _refuse(absolute.name, problems)
    assert file is not None
    try:
        return Workspace(absolute, digest(_content(document)), file, document, list(stamp))
    except InvalidInput as error:
        raise ConfigurationError(f"{absolute.name}: {error}") from error


def _refuse(name: str, problems: list[Problem]) -> None:
    if problems:
        ordered = sorted(problems, key=lambda problem: problem.line or 0)
        raise ConfigurationError(
            "\n".join(problem.at(name) for problem in ordered),
            details={"problems": [problem.at(name) for problem in ordered]},
        )


def _content(document: Document) -> object:
    return {} if document.value is None else document.value


def _read(path: Path) -> tuple[str, list[_Stamp]]:
    """A file's text and, unless it may still change unnoticed, its status."""
    with path.open("rb") as stream:
        status = os.fstat(stream.fileno())
        text = stream.read().decode("utf-8-sig")
    settled = time.time_ns() - status.st_ctime_ns > _SETTLED_NS
    return text, [_stamp(status)] if settled else []


def _stamp(status: os.stat_result) -> _Stamp:
    return (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev)
