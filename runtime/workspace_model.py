"""What a workspace file may say: one class per section, every unknown key an error."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Self

from pydantic import Field, model_validator

from runtime.core.durations import Duration
from runtime.core.intents import Intent
from runtime.core.model import Decision, Frozen, Scope
from runtime.core.policy import PolicyRule
from runtime.core.profile import ModelProfile

_CRON_FIELD = r"[0-9A-Za-z*/,\-]+"

Name = Annotated[str, Field(min_length=1, pattern=r"^\S(.*\S)?$")]
Count = Annotated[int, Field(gt=0)]


class LimitsConfig(Frozen):
    """Upper bounds that no call can raise; None bounds nothing."""

    max_turns_per_session: Count | None = None
    max_tool_calls_per_session: Count | None = None
    max_input_bytes: Count | None = None


class McpServer(Frozen):
    """A server of tools that speaks the Model Context Protocol: a command to start, or an address.

    Attributes:
        command: Program and arguments to start and speak to over its standard streams.
        url: Address of a server that is running already.
        env: Names of environment variables that the program gets; no others but the harmless ones.
        scopes: What every tool of the server requires.
    """

    command: tuple[str, ...] | None = Field(default=None, strict=False, min_length=1)
    url: str | None = None
    env: tuple[str, ...] = Field(default=(), strict=False)
    scopes: tuple[Scope, ...] = Field(default=(), strict=False)

    @model_validator(mode="after")
    def _one_way_in(self) -> Self:
        if (self.command is None) == (self.url is None):
            raise ValueError("needs exactly one way in — give either command or url")
        return self


class ToolsConfig(Frozen):
    """Where tools come from."""

    modules: tuple[Name, ...] = Field(default=(), strict=False)
    mcp_servers: dict[Name, McpServer] = Field(default_factory=dict)


class ApprovalsConfig(Frozen):
    """How long a question waits, and whether an approval that any reachable intent requires is kept."""

    expires_after: Duration = timedelta(hours=24)
    sticky_approvals: bool = True


class Schedule(Frozen):
    """A session that starts by the clock.

    Attributes:
        id: Name of the schedule.
        cron: Minute, hour, day of month, month, day of week.
        file: The session's definition, relative to the workspace file.
        timezone: IANA name that the cron fields are read in.
        lane_id: Lane that narrows the session.
        principal: On whose behalf it runs.
    """

    id: Name
    cron: str
    file: Name
    timezone: Name = "UTC"
    lane_id: str | None = None
    principal: str | None = None

    @model_validator(mode="after")
    def _five_fields(self) -> Self:
        if not re.fullmatch(rf"\s*{_CRON_FIELD}(\s+{_CRON_FIELD}){{4}}\s*", self.cron):
            raise ValueError(
                f"cron {self.cron!r} is not five fields — write e.g. '0 6 * * 1' (Mondays at 06:00)"
            )
        return self


class AgentRuntimeConfig(Frozen):
    """The section ``agent_runtime``."""

    default_model: Name | None = None
    models: dict[Name, ModelProfile] = Field(default_factory=dict)
    intents: dict[Name, Intent] = Field(default_factory=dict)
    limits: LimitsConfig = LimitsConfig()
    tools: ToolsConfig = ToolsConfig()
    approvals: ApprovalsConfig = ApprovalsConfig()
    schedules: tuple[Schedule, ...] = Field(default=(), strict=False)


class SecurityConfig(Frozen):
    """The section ``security``: what may be touched at all; nothing, unless it is listed."""

    allowed_scopes: tuple[Scope, ...] = Field(default=(), strict=False)


class LanePolicies(Frozen):
    """A lane's policy layer, which may only tighten unless it says ``allow_loosening``."""

    default_decision: Annotated[Decision | None, Field(strict=False)] = None
    allow_loosening: bool = False
    rules: tuple[PolicyRule, ...] = Field(default=(), strict=False)


class Policies(LanePolicies):
    """The section ``policies``; what it does not mention is denied."""

    default_decision: Annotated[Decision, Field(strict=False)] = Decision.DENY


class Lane(Frozen):
    """A narrower way through the workspace; None for the scopes narrows nothing."""

    id: Name
    allowed_scopes: tuple[Scope, ...] | None = Field(default=None, strict=False)
    policies: LanePolicies | None = None


class WorkspaceFile(Frozen):
    """The whole file."""

    agent_runtime: AgentRuntimeConfig = AgentRuntimeConfig()
    security: SecurityConfig = SecurityConfig()
    lanes: tuple[Lane, ...] = Field(default=(), strict=False)
    policies: Policies = Policies()
