"""Asks a tool what became of a ``once`` call that was cut off, before a person has to say."""

from __future__ import annotations

from dataclasses import replace

from runtime.engine.outcome import CallResult, Outcome
from runtime.engine.parts import Parts
from runtime.store.steps import LoadedStep
from runtime.tools.reconcile import Reconciliation
from runtime.tools.run import checked_output

RECONCILE_SECONDS = 10.0
"""How long a tool's ``reconcile`` may take; then the call's outcome stays unknown."""


def reconciled(parts: Parts, step: LoadedStep, cut_off: Outcome) -> Outcome:
    """What a call that was cut off came to, as far as its tool can tell.

    Nothing is claimed for the question: two workers may ask, and the record of one of them wins.

    Returns:
        The call's output if it happened, a retry at once if its target now refuses the call's key, and
        ``cut_off``, in doubt, if nobody can tell.
    """
    tool = parts.host.registry.get(step.tool_name)
    if tool is None or tool.reconcile is None:
        return cut_off
    answer = parts.runner.reconcile(tool, step.id, deadline_s=RECONCILE_SECONDS)
    if answer.outcome == "happened":
        output = checked_output(tool, answer.output)
        result = CallResult.SUCCESS if output.success else CallResult.FAILURE
        return replace(cut_off, output=output, result=result, reconciled=answer.outcome)
    if answer.outcome == "prevented":
        return replace(cut_off, result=CallResult.CRASHED, retry_in_ms=0, reconciled=answer.outcome)
    return replace(cut_off, reconciled=Reconciliation.unknown().outcome)
