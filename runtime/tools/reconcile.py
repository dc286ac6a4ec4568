"""What a tool knows of a call whose outcome a crash hid."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Literal, get_args

from runtime.core.canonical import canonical_json
from runtime.core.model import Json
from runtime.tools.declare import ToolDefinition
from runtime.tools.run import finish

Outcome = Literal["happened", "prevented", "unknown"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconciliation:
    """The answer of a tool's ``reconcile``.

    Attributes:
        outcome: ``happened``: the effect took place, once. ``prevented``: it did not, and the target now
            refuses this idempotency key, so that running again is safe. ``unknown``: a person decides.
        output: What the call would have returned, if it happened.
    """

    outcome: Outcome
    output: Json = None

    @staticmethod
    def happened(output: Json) -> Reconciliation:
        """The effect took place, and this is what the call would have returned."""
        return Reconciliation("happened", output)

    @staticmethod
    def prevented() -> Reconciliation:
        """It did not, and the target now refuses this key."""
        return Reconciliation("prevented")

    @staticmethod
    def unknown() -> Reconciliation:
        """Nobody can tell."""
        return Reconciliation("unknown")

    def to_json(self) -> dict[str, Json]:
        """Plain JSON for `from_json`."""
        return {"outcome": self.outcome, "output": self.output}

    @staticmethod
    def from_json(content: Json) -> Reconciliation:
        """The inverse of `to_json`; what it does not understand is unknown."""
        if isinstance(content, dict) and content.get("outcome") in get_args(Outcome):
            return Reconciliation(content["outcome"], content.get("output"))
        return Reconciliation.unknown()


def call_reconcile(definition: ToolDefinition, idempotency_key: str) -> Reconciliation:
    """Ask a tool what became of a call; whatever goes wrong here is unknown."""
    if definition.reconcile is None:
        return Reconciliation.unknown()
    try:
        answer = finish(definition.reconcile(idempotency_key))
        if isinstance(answer, Reconciliation) and answer.outcome in get_args(Outcome):
            canonical_json(answer.output)
            return answer
        _log.error(
            "reconcile of %s returned %s, not a Reconciliation", definition.name, type(answer).__name__
        )
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - as for a tool
        _log.exception("reconcile of %s failed", definition.name)
    return Reconciliation.unknown()
