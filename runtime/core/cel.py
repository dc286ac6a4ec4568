"""CEL expressions as conditions: read and type-checked when a policy is loaded, bounded when evaluated.

The language is the Common Expression Language (https://github.com/google/cel-spec), by the library of those
who define it. Its evaluator has no clock, no I/O and no loops but over the values that it is given, with a
budget of iterations; its patterns are RE2's. What it cannot bound is refused here: values nested deeper than
`MAX_DEPTH` or with more than `MAX_VALUES` parts, and expressions of more than `MAX_EXPRESSION` characters.

What an expression sees: ``tool`` and ``intent`` (texts, empty where there is none), ``input``, ``metadata``,
``budget``, ``now`` (a timestamp), ``run_id``, ``task_id``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any, Final

from runtime.core.predicates import UNKNOWN, PolicyContext

MAX_EXPRESSION: Final = 10_000
MAX_DEPTH: Final = 100
MAX_VALUES: Final = 10_000


class CelExpression:
    """A checked expression that is true or false of a call; made by `compile_cel`."""

    def __init__(self, text: str, program: Any) -> None:
        self.text: Final = text
        self._program = program

    def __call__(self, context: PolicyContext) -> bool | None:
        """Evaluate it; ``None`` where that fails, or where it depends on what is not known."""
        return self.evaluate(context)[0]

    def evaluate(self, context: PolicyContext) -> tuple[bool | None, str]:
        """The value, or ``None`` and why there is none."""
        values = _visible(context)
        problem = _too_large(values)
        if problem is not None:
            return None, problem
        try:
            result = self._program.eval(data=values)
            value = result.value()
        except Exception as error:  # noqa: BLE001 - the library's failures have no class of their own
            return None, _short(error)
        if isinstance(value, bool):
            return value, ""
        return None, _short(value)


@lru_cache(maxsize=4096)
def compile_cel(text: str) -> CelExpression:
    """Read and check an expression.

    Raises:
        ValueError: If it is too long, is no expression, names what does not exist, or is not a condition.
    """
    if len(text) > MAX_EXPRESSION:
        raise ValueError(
            f"the CEL expression has {len(text)} characters — at most {MAX_EXPRESSION}; write several rules"
        )
    try:
        program = _environment().compile(text)
    except Exception as error:  # noqa: BLE001 - as above
        raise ValueError(f"the CEL expression is wrong: {_short(error)} — correct it") from None
    kind = program.return_type().name()
    if kind not in ("BOOL", "DYN", "bool", "dyn"):
        raise ValueError(f"the CEL expression is a {kind} — write one that is true or false")
    return CelExpression(text, program)


@lru_cache(maxsize=4096)
def text_matcher(pattern: str) -> Callable[[str], bool | None]:
    """A search for a pattern in texts, in time proportional to their length (RE2).

    The search is ``None`` for texts that are not Unicode (lone surrogates).

    Raises:
        ValueError: If it is no pattern.
    """
    try:
        program = _texts().compile(f"value.matches({_quoted(pattern)})")
        probe = program.eval(data={"value": ""}).value()
    except Exception as error:  # noqa: BLE001 - as above
        probe = error
    if not isinstance(probe, bool):
        raise ValueError(f"{pattern!r} is no pattern: {_short(probe)} — write one that RE2 reads")

    def search(text: str) -> bool | None:
        try:
            found = program.eval(data={"value": text}).value()
        except Exception:  # noqa: BLE001 - as above
            return None
        return found if isinstance(found, bool) else None

    return search


@cache
def _environment() -> Any:
    from cel_expr_python import cel

    kinds = cel.Type
    return cel.NewEnv(
        variables={
            "tool": kinds.STRING,
            "intent": kinds.STRING,
            "run_id": kinds.STRING,
            "task_id": kinds.STRING,
            "input": kinds.DYN,
            "metadata": kinds.Map(kinds.STRING, kinds.DYN),
            "budget": kinds.Map(kinds.STRING, kinds.DYN),
            "now": kinds.TIMESTAMP,
        }
    )


@cache
def _texts() -> Any:
    from cel_expr_python import cel

    return cel.NewEnv(variables={"value": cel.Type.STRING})


def _quoted(text: str) -> str:
    """A CEL string literal, with every character that is not plain written as a number."""
    plain = (c if c.isalnum() and c.isascii() else f"\\U{ord(c):08x}" for c in text)
    return '"' + "".join(plain) + '"'


def _visible(context: PolicyContext) -> dict[str, Any]:
    """What is known of a call; an expression that needs more than that is open, and fails."""
    values: dict[str, Any] = {"tool": context.tool_name or ""}
    if context.run_id:
        values |= {"run_id": context.run_id, "task_id": context.task_id or ""}
    if not context.open_input:
        values["budget"] = dict(context.budget)
    if context.now is not None:
        values["now"] = context.now
    if context.intent is not UNKNOWN:
        values["intent"] = context.intent or ""
    if not context.open_input and context.tool_arguments is not UNKNOWN:
        values["input"] = context.tool_arguments
    if not any(value is UNKNOWN for value in context.execution_metadata.values()):
        values["metadata"] = dict(context.execution_metadata)
    return values


def _too_large(values: Any) -> str | None:
    """Why a value must not reach the evaluator, which recurses into it."""
    level, count = [values], 0
    for _ in range(MAX_DEPTH + 1):
        below: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                below += value.values()
            elif isinstance(value, list | tuple):
                below += value
        count += len(below)
        if count > MAX_VALUES:
            return f"the call has more than {MAX_VALUES} values"
        if not below:
            return None
        level = below
    return f"the call is nested deeper than {MAX_DEPTH} levels"


def _short(problem: object) -> str:
    text = " ".join(str(problem).split())
    return text if len(text) <= 200 else text[:199] + "…"
