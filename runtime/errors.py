"""The one tree of errors that this library raises, and the codes that governed outcomes carry.

Governed outcomes (a denial, a parked approval, a failed tool) are values: see
`runtime.core.model.ToolOutput`. What is raised is misuse or broken infrastructure::

    AgentRuntimeError
    ├── ConfigurationError        the workspace file, a setting or a declaration is wrong
    │   └── MissingEnvironment    a variable that the configuration names is not set
    ├── InvalidInput              an argument is malformed; nothing was saved
    ├── SpecTampered              the workspace file changed after it was loaded
    ├── SessionNotFound           no session has that id
    ├── SessionConflict           the session exists with another definition, principal or state
    ├── ApprovalRefused           an answer came twice, late, or for a changed call
    ├── GovernedCallFailed        `ToolOutput.unwrap()` on an unsuccessful output
    ├── WaitTimeout               a bounded wait ended before what it waited for
    ├── StoreUnavailable          the SQL database cannot be reached or is not migrated
    └── LiveUnavailable           Redis cannot be reached where it is needed

Every message says what is wrong, names the value, and says how to mend it.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """Codes of governed failures, as in the reference documents."""

    TOOL_NOT_FOUND = "TOOL_NOT_FOUND"
    SCOPE_DENIED = "SCOPE_DENIED"
    POLICY_DENIED = "POLICY_DENIED"
    APPROVAL_REQUIRED = "APPROVAL_REQUIRED"
    INVALID_INPUT = "INVALID_INPUT"
    INVALID_OUTPUT = "INVALID_OUTPUT"
    TOOL_EXECUTION_FAILED = "TOOL_EXECUTION_FAILED"
    SPEC_TAMPERED = "SPEC_TAMPERED"
    LIMIT_EXCEEDED = "LIMIT_EXCEEDED"
    CONFIGURATION_ERROR = "CONFIGURATION_ERROR"
    MISSING_ENVIRONMENT = "MISSING_ENVIRONMENT"
    LOOP_LIMIT_EXCEEDED = "AGENT_RUNTIME_LOOP_LIMIT_EXCEEDED"
    WORKFLOW_STALLED = "AGENT_RUNTIME_WORKFLOW_STALLED"
    PROVIDER_TRANSPORT_ERROR = "PROVIDER_TRANSPORT_ERROR"
    PROVIDER_AUTHENTICATION_FAILED = "PROVIDER_AUTHENTICATION_FAILED"
    PROVIDER_RATE_LIMITED = "PROVIDER_RATE_LIMITED"
    PROVIDER_HTTP_ERROR = "PROVIDER_HTTP_ERROR"
    PROVIDER_MALFORMED_RESPONSE = "PROVIDER_MALFORMED_RESPONSE"
    PROVIDER_UNSUPPORTED = "PROVIDER_UNSUPPORTED"


class AgentRuntimeError(Exception):
    """Root of every error that this library raises.

    Attributes:
        code: A short machine-readable name of the kind of error.
        details: Plain JSON that says more; never a secret.
    """

    code = "AGENT_RUNTIME_ERROR"

    def __init__(
        self, message: str, *, code: str | None = None, details: Mapping[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        if code is not None:
            self.code = code
        self.details: dict[str, Any] = dict(details or {})


class ConfigurationError(AgentRuntimeError):
    """The workspace file, a setting or a tool declaration is wrong."""

    code = ErrorCode.CONFIGURATION_ERROR


class MissingEnvironment(ConfigurationError):
    """An environment variable that the configuration names is unset or blank."""

    code = ErrorCode.MISSING_ENVIRONMENT


class InvalidInput(AgentRuntimeError):
    """An argument is malformed; nothing was saved."""

    code = ErrorCode.INVALID_INPUT


class SpecTampered(AgentRuntimeError):
    """The workspace file changed or vanished after it was loaded."""

    code = ErrorCode.SPEC_TAMPERED


class SessionNotFound(AgentRuntimeError):
    """No session has the given id."""

    code = "SESSION_NOT_FOUND"


class SessionConflict(AgentRuntimeError):
    """The session exists with another definition, another principal or in a state that forbids this."""

    code = "SESSION_CONFLICT"


class ApprovalRefused(AgentRuntimeError):
    """An answer to an approval request came twice, late, for a changed call, or from whom it does not take.

    Its ``code`` says why: ``not_found``, ``already_resolved``, ``expired``, ``cancelled``; ``already_voted``,
    ``not_authenticated``, ``not_an_approver``, ``separation_of_duty``; ``action_digest_mismatch``,
    ``not_editable``, ``not_answerable``, ``invalid_output``; of an edited call, the kernel's code in lower
    case, such as ``policy_denied`` or ``invalid_input``.
    """

    code = "APPROVAL_REFUSED"


class GovernedCallFailed(AgentRuntimeError):
    """`ToolOutput.unwrap()` was called on an unsuccessful output; carries its code and details."""


class WaitTimeout(AgentRuntimeError):
    """A bounded wait ended before what it waited for came about."""

    code = "WAIT_TIMEOUT"


class StoreUnavailable(AgentRuntimeError):
    """The SQL database cannot be reached, or lacks the current schema."""

    code = "STORE_UNAVAILABLE"


class LiveUnavailable(AgentRuntimeError):
    """Redis cannot be reached where it is needed."""

    code = "LIVE_UNAVAILABLE"


class ToolError(AgentRuntimeError):
    """Raised by a tool to report a failure with its own code and details.

    Example:
        >>> raise ToolError("no event 'weekly'; list events first", code="EVENT_NOT_FOUND")
    """

    code = ErrorCode.TOOL_EXECUTION_FAILED
