"""Policy in Python: functions of the workspace's own that may tighten what its rules decide.

A function named in ``policies.entry_points`` is asked about every call that the rules do not deny, right
before it runs and outside any transaction. It gets a frozen `PolicyQuestion` and returns ``None``, or a
decision and its reason. ``deny`` and ``approval_required`` count where they are stricter than what holds;
``allow`` changes nothing. A function that raises, or returns something else, denies the call.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

from runtime.core.model import Decision, PolicyDecision
from runtime.core.policy import PolicyContext, PolicyResult
from runtime.core.policy_machine import LOOSENESS
from runtime.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class PolicyQuestion:
    """What an entry point is shown of a call; its mappings and lists cannot be changed.

    Attributes:
        tool_name: The tool that is called.
        input: Its input, objects as read-only mappings and lists as tuples.
        metadata: The context's metadata, with ``agent_intent``, ``agent_turn_index`` and
            ``agent_tool_call_count`` as the journal has them.
        intent: The turn's intent; ``None`` where there is none.
        run_id: The application's run.
        task_id: The application's task.
        now: The instant of the decision.
        decision: What holds so far: ``allow`` or ``approval_required``.
    """

    tool_name: str
    input: Any
    metadata: Mapping[str, Any]
    intent: str | None
    run_id: str
    task_id: str | None
    now: datetime | None
    decision: Decision


EntryPoint = Callable[[PolicyQuestion], Any]


@dataclass(frozen=True, slots=True)
class PolicyHooks:
    """The entry points of a workspace file, by ``module:function``."""

    functions: tuple[tuple[str, EntryPoint], ...] = ()

    @staticmethod
    def load(names: Iterable[str], base_dir: Path) -> PolicyHooks:
        """Import entry points.

        Args:
            names: ``module:function``; a module is a file beside the workspace file, or importable.
            base_dir: The directory of the workspace file.

        Raises:
            ConfigurationError: Naming the entry point, the cause and the fix.
        """
        return PolicyHooks(tuple((name, _function(name, base_dir)) for name in names))

    def tighten(self, result: PolicyResult, context: PolicyContext) -> PolicyResult:
        """Ask the functions in order, until one denies."""
        for name, function in self.functions:
            if result.decision is Decision.DENY:
                break
            record = _ask(name, function, _question(context, result.decision))
            if record is None:
                continue
            decided = Decision(record["decision"])
            if LOOSENESS[decided] < LOOSENESS[result.decision]:
                result = replace(result, decision=decided)
            result = replace(result, decisions=(*result.decisions, record))
        return result


def _ask(name: str, function: EntryPoint, question: PolicyQuestion) -> PolicyDecision | None:
    try:
        answer = function(question)
        decision, reason = answer if isinstance(answer, tuple) else (answer, None)
        if decision is None or decision == Decision.ALLOW:
            return None
        record = PolicyDecision(policy_id=name, decision=Decision(decision).value)
        if reason is not None:
            record["reason"] = str(reason)
        return record
    except Exception as error:  # noqa: BLE001 - whatever an entry point raises, the call is denied
        return PolicyDecision(
            policy_id=name,
            decision=Decision.DENY.value,
            reason=f"the policy entry point {name} failed ({type(error).__name__}), so the call is denied; "
            "mend it, or have it return None or a decision and a reason",
        )


def _question(context: PolicyContext, decision: Decision) -> PolicyQuestion:
    return PolicyQuestion(
        tool_name=context.tool_name or "",
        input=_frozen(context.tool_arguments),
        metadata=_frozen(dict(context.execution_metadata)),
        intent=context.intent if isinstance(context.intent, str) else None,
        run_id=context.run_id,
        task_id=context.task_id,
        now=context.now,
        decision=decision,
    )


def _frozen(value: Any) -> Any:
    if isinstance(value, dict):
        return MappingProxyType({key: _frozen(item) for key, item in value.items()})
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


# --- loading --------------------------------------------------------------------------------------


def _function(name: str, base_dir: Path) -> EntryPoint:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(_module(module_name, base_dir), function_name, None)
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"policies.entry_points: {name!r} cannot be imported: {type(error).__name__}: {error} — put "
            f"{module_name}.py into {base_dir}, or install the package that holds it"
        ) from error
    if not callable(function):
        raise ConfigurationError(
            f"policies.entry_points: module {module_name!r} has no function {function_name!r} — correct it"
        )
    return function  # type: ignore[no-any-return]


def _module(name: str, base_dir: Path) -> ModuleType:
    """A module beside the workspace file, under a name that cannot meet another's; or an installed one."""
    path = base_dir.absolute() / (name.replace(".", "/") + ".py")
    if not path.is_file():
        return importlib.import_module(name)
    key = f"agent_runtime_policy:{path}"
    spec = importlib.util.spec_from_file_location(key, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python module")
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module
