"""Recorded calls, decided again: what another workspace file would have said of them.

Only the policy is asked, with the call as the journal has it. Scopes, limits and grants are not, nor does
anything run.
"""

from __future__ import annotations

from dataclasses import dataclass

from runtime.core.model import Decision, ExecutionContext, PolicyDecision, StepStatus
from runtime.errors import ConfigurationError, ErrorCode
from runtime.kernel.tool_host import ToolHost
from runtime.kernel.verdict import Call
from runtime.store.replaying import RecordedCall

_UNDECIDED = {StepStatus.PENDING, StepStatus.READY, StepStatus.CANCELLED}


@dataclass(frozen=True, slots=True)
class Replayed:
    """A recorded call and what policy says of it now.

    Attributes:
        recorded: The call.
        before: What was decided of it.
        after: What would be decided.
        decisions: The rules that match now.
    """

    recorded: RecordedCall
    before: Decision
    after: Decision
    decisions: tuple[PolicyDecision, ...]

    @property
    def differs(self) -> bool:
        """Whether the decision would be another one."""
        return self.before is not self.after


def replay(host: ToolHost, recorded: RecordedCall) -> Replayed | None:
    """Decide a recorded call again; ``None`` where policy was not asked, or its input is gone."""
    before = _recorded_decision(recorded)
    if before is None or not recorded.input_known:
        return None
    try:
        result = host.judge(_call(recorded))
    except ConfigurationError as error:
        # The lane is gone: the call would be refused before policy is asked.
        record = PolicyDecision(policy_id="kernel.lane", decision=Decision.DENY.value, reason=str(error))
        return Replayed(recorded, before, Decision.DENY, (record,))
    return Replayed(recorded, before, result.decision, result.decisions)


def _recorded_decision(recorded: RecordedCall) -> Decision | None:
    """What policy decided then, as far as the step tells; ``None`` where it was not asked."""
    if recorded.approval_id is not None or recorded.error_code == ErrorCode.APPROVAL_REQUIRED:
        return Decision.APPROVAL_REQUIRED
    if recorded.status in _UNDECIDED:
        return None
    if recorded.status != StepStatus.DENIED:
        return Decision.ALLOW
    return Decision.DENY if recorded.error_code == ErrorCode.POLICY_DENIED else None


def _call(recorded: RecordedCall) -> Call:
    return Call(
        tool_name=recorded.tool_name,
        input=recorded.input,
        ctx=ExecutionContext.model_validate(recorded.context),
        session_id=recorded.session_id,
        node_id=recorded.node_id,
        step_id=recorded.step_id,
        call_id=recorded.call_id,
        intent=recorded.intent,
        turn_index=recorded.turn_index,
        tool_calls=recorded.calls_before,
        now=recorded.at,
    )
