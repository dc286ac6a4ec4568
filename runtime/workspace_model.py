"""What a workspace file may say: one class per section, every unknown key an error."""

from __future__ import annotations

from datetime import UTC, timedelta, tzinfo
from typing import Annotated, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from runtime.core.durations import Duration, milliseconds
from runtime.core.intents import Intent
from runtime.core.model import Decision, Frozen, Scope
from runtime.core.policy import PolicyRule
from runtime.core.profile import ModelProfile
from runtime.core.quorum import ApprovalRule, Requirement, fits_tool
from runtime.core.timetable import Overlap, Timetable, check_cron

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


class Webhook(Frozen):
    """Where the outside is told of approval requests.

    Attributes:
        url: Address that is posted to.
        secret_env: Environment variable with the secret that signs what is posted.
    """

    url: Annotated[str, Field(pattern=r"^https?://[^/\s]+\S*$")]
    secret_env: Name


class ApprovalsConfig(Frozen):
    """How approvals are asked for, and who may answer.

    Attributes:
        expires_after: How long a question waits before it is denied by default.
        sticky_approvals: Whether an approval that any reachable intent requires is kept.
        rules: Who has to answer for which tools; the first that names the tool counts, and without one
            anybody's answer is enough.
        roles: The principals who hold each role.
        webhook: Who is told of new, escalated and answered requests; None for nobody.
    """

    expires_after: Duration = timedelta(hours=24)
    sticky_approvals: bool = True
    rules: tuple[ApprovalRule, ...] = Field(default=(), strict=False)
    roles: dict[Name, Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]] = Field(
        default_factory=dict
    )
    webhook: Webhook | None = None

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        for index, rule in enumerate(self.rules):
            named = (rule.approvers, rule.escalate and rule.escalate.approvers)
            for role in (role for each in named if each for role in each.roles):
                if role not in self.roles:
                    raise ValueError(
                        f"rules[{index}] names the role {role!r}, which nobody holds — add it to roles"
                    )
            second = rule.escalate
            if second is not None and second.after >= (rule.expires_after or self.expires_after):
                raise ValueError(
                    f"rules[{index}] escalates when its requests have expired — shorten escalate.after, or "
                    "lengthen expires_after"
                )
            asked = rule.requirement(self.roles)
            possible = asked.may_answer(escalated=True)
            if possible is not None and len(possible) < asked.quorum:
                raise ValueError(
                    f"rules[{index}] asks for {asked.quorum} people, and names {len(possible)} — "
                    "lower quorum, or name more approvers"
                )
        return self

    def rule_for(self, tool_name: str) -> ApprovalRule | None:
        """The rule for requests about a tool, if there is one."""
        return next((rule for rule in self.rules if fits_tool(rule.tools, tool_name)), None)

    def requirement_for(self, tool_name: str) -> Requirement:
        """What requests about a tool ask of those who answer."""
        rule = self.rule_for(tool_name)
        return Requirement() if rule is None else rule.requirement(self.roles)

    def expires_after_ms(self, tool_name: str) -> int:
        """After how many milliseconds a request about a tool is denied by default."""
        rule = self.rule_for(tool_name)
        return milliseconds((rule and rule.expires_after) or self.expires_after)


class Schedule(Frozen):
    """A session that starts by the clock.

    Attributes:
        id: Name of the schedule; its sessions are named after it.
        cron: Minute, hour, day of month, month, day of week; see `runtime.core.timetable`.
        file: The session's definition, relative to the workspace file.
        timezone: IANA name that the cron fields are read in.
        lane_id: Lane that narrows the session; it wins over the file's.
        principal: On whose behalf it runs; it wins over the file's.
        overlap: What to do with a due time while the last session has not ended.
        catch_up: How late a session may start.
        jitter: Bound on what each start is put off by; None for not at all.
    """

    id: Annotated[str, Field(min_length=1, max_length=150, pattern=r"^[^\s\x00-\x1f\x7f-\x9f]+$")]
    cron: str
    file: Name
    timezone: Name = "UTC"
    lane_id: str | None = None
    principal: str | None = None
    overlap: Annotated[Overlap, Field(strict=False)] = Overlap.SKIP
    catch_up: Duration = timedelta(minutes=1)
    jitter: Duration | None = None

    @field_validator("cron")
    @classmethod
    def _is_due(cls, cron: str) -> str:
        check_cron(cron)
        return " ".join(cron.split())

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        _zone(name)
        return name

    @property
    def timetable(self) -> Timetable:
        """When it is due."""
        return Timetable(self.cron, _zone(self.timezone))

    @property
    def timetable_text(self) -> str:
        """What `timetable` was made of; another text is another timetable."""
        return f"{self.cron} {self.timezone}"

    @property
    def catch_up_ms(self) -> int:
        """`catch_up` in milliseconds."""
        return milliseconds(self.catch_up)

    @property
    def jitter_ms(self) -> int:
        """`jitter` in milliseconds; 0 for none."""
        return 0 if self.jitter is None else milliseconds(self.jitter)


def _zone(name: str) -> tzinfo:
    """The time zone of that name; UTC needs no data.

    Raises:
        ValueError: If there is none.
    """
    if name == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise ValueError(
            f"timezone {name!r} is no time zone of this machine — write an IANA name such as Europe/Berlin, "
            "or install the package tzdata"
        ) from None


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


EntryPoint = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""A function as ``module:function``."""


class Policies(LanePolicies):
    """The section ``policies``; what it does not mention is denied.

    Attributes:
        default_decision: What holds where no rule says more.
        entry_points: Functions that may tighten what the rules decide; see `runtime.kernel.policy_hooks`.
    """

    default_decision: Annotated[Decision, Field(strict=False)] = Decision.DENY
    entry_points: tuple[EntryPoint, ...] = Field(default=(), strict=False)


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
