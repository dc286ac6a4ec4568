"""What conditions are compiled to: tests of one call, and the keys under which they are found.

Truth has three values. A test is ``None`` where what it asks is not known: the input and the turn of a call
that has not been made, a budget that nobody counts, an expression that cannot be evaluated. ``all``,
``any`` and ``not`` pass it on as in Kleene's logic; `runtime.core.policy` says what becomes of it.

A `Key` is what a test needs to hold at all: a value, or any, at one place of the call. Rules are filed under
their keys, so that a decision looks only at those that the call may match.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, Final, Literal, NamedTuple


class Mark(Enum):
    """Stands where a value would."""

    UNKNOWN = "unknown"
    MISSING = "missing"


UNKNOWN_ARGUMENTS: Final = Mark.UNKNOWN
"""Stands for the arguments of a call that has not been made: any input is possible."""

_MISSING: Final = Mark.MISSING
UNKNOWN: Final = Mark.UNKNOWN
"""Stands in the metadata for what is known only when a call is made."""


Field = Literal["tool_arguments", "execution_metadata", "environment", "budget", "intent"]
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class PolicyContext:
    """The call that policy decides on.

    Attributes:
        trigger: When policy is asked: ``on_tool_request``, or another event of the runtime.
        run_id: The application's run.
        task_id: The application's task, if any.
        tool_name: The registered name of the tool, if a tool is concerned.
        tool_arguments: The canonical input; anything but a mapping counts as having no keys.
        execution_metadata: The context's metadata; ``agent_intent`` has a meaning.
        allowed_intents: Intents that may be chosen; ``None`` means all that are configured.
        now: The instant of the decision, with its zone; ``None`` where it is not known.
        environment: Variables of the deciding process that rules mention, as far as they are set.
        budget: What the call's node has used up so far, by name; what is absent is not known.
        open_input: Whether ``tool_arguments`` only stands for inputs that answer the declarative conditions
            alike, so that patterns and expressions on it stay open.
        intent: The turn's intent, read off the metadata.
    """

    trigger: str
    run_id: str
    task_id: str | None = None
    tool_name: str | None = None
    tool_arguments: Any = None
    execution_metadata: Mapping[str, Any] = field(default_factory=dict)
    allowed_intents: tuple[str, ...] | None = None
    now: datetime | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    open_input: bool = False
    intent: str | Mark | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "intent", intent_of(self.execution_metadata))

    def with_input(self, tool_name: str | None, arguments: Any) -> PolicyContext:
        """The same call of a tool with arguments that only stand for others."""
        # Spelt out: `dataclasses.replace` costs as much as a decision.
        return PolicyContext(
            self.trigger,
            self.run_id,
            self.task_id,
            tool_name,
            arguments,
            self.execution_metadata,
            self.allowed_intents,
            self.now,
            self.environment,
            self.budget,
            True,
        )


def intent_of(metadata: Any) -> str | Mark | None:
    """The turn's intent, trimmed; ``None`` where it is absent, blank or not a string."""
    intent = metadata.get("agent_intent") if isinstance(metadata, Mapping) else None
    if isinstance(intent, str):
        return intent.strip(" \t\r\n") or None
    return UNKNOWN if intent is UNKNOWN else None


Test = Callable[[PolicyContext], bool | None]
"""A condition for one tool: true, false, or ``None`` where it depends on what is not known."""


class Key(NamedTuple):
    """What a test needs in order not to be false.

    Attributes:
        field: The part of the call that is looked at.
        path: Where in it there must be a value.
        values: What may stand there; ``None`` for anything.
        verdict: What must not be false of the value; ``None`` asks nothing.
    """

    field: Field
    path: Path
    values: tuple[Any, ...] | None
    verdict: Callable[[Any], bool | None] | None = None


class Predicate(NamedTuple):
    """A compiled condition; to call it is to test a call."""

    test: Test
    key: Key | None = None

    def __call__(self, context: PolicyContext) -> bool | None:
        """Whether the condition holds of a call."""
        return self.test(context)


Bound = Predicate | bool
"""A condition specialised to one tool; a constant where nothing else matters."""


def value_at(root: Any, path: Path) -> Any:
    """What stands at a path of an object; ``MISSING`` or ``UNKNOWN`` where nothing (known) does."""
    for key in path:
        # The exact type is asked first: an abstract class costs ten times as much.
        if type(root) is dict:
            root = root.get(key, _MISSING)
        elif root is UNKNOWN or root is _MISSING:
            return root
        elif isinstance(root, Mapping):
            root = root.get(key, _MISSING)
        else:
            return _MISSING
    return root


def combine(parts: Iterable[Bound], *, decisive: bool) -> Bound:
    """`any` (decisive true) or `all` (decisive false) of parts, constants folded away."""
    parts = list(parts)
    if any(part is decisive for part in parts):
        return decisive
    open_parts = [part for part in parts if not isinstance(part, bool)]
    if len(open_parts) < 2:
        return open_parts[0] if open_parts else not decisive
    keys = [part.key for part in open_parts]
    key = _common_key(keys) if decisive else _narrowest(keys)
    return Predicate(_combined([part.test for part in open_parts], decisive), key)


def _combined(tests: list[Test], decisive: bool) -> Test:
    if len(tests) == 2:
        return _pair(tests[0], tests[1], decisive)

    def test(context: PolicyContext) -> bool | None:
        result: bool | None = not decisive
        for part in tests:
            truth = part(context)
            if truth is decisive:
                return decisive
            if truth is None:
                result = None
        return result

    return test


def _pair(first: Test, second: Test, decisive: bool) -> Test:
    """Two parts, the commonest case, without a loop."""

    def test(context: PolicyContext) -> bool | None:
        one = first(context)
        if one is decisive:
            return decisive
        other = second(context)
        if other is decisive:
            return decisive
        return None if one is None or other is None else not decisive

    return test


def negate(inner: Bound) -> Bound:
    """The opposite; what is not known stays so."""
    if isinstance(inner, bool):
        return not inner
    asked = inner.test

    def test(context: PolicyContext) -> bool | None:
        truth = asked(context)
        return None if truth is None else not truth

    return Predicate(test)


def _narrowest(keys: list[Key | None]) -> Key | None:
    """One of the keys, all of which are needed: one with few values."""
    known = [key for key in keys if key is not None]
    return min(known, key=lambda key: (key.values is None, len(key.values or ())), default=None)


def _common_key(keys: list[Key | None]) -> Key | None:
    """The key that stands for all, one of which is needed; they must be about one place."""
    known = [key for key in keys if key is not None]
    if len(known) < len(keys) or len({(key.field, key.path) for key in known}) > 1:
        return None
    field, path = known[0][:2]
    if any(key.values is None for key in known):
        return Key(field, path, None)
    return Key(field, path, tuple(value for key in known for value in key.values or ()))
