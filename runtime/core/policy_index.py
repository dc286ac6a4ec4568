"""Rules as a decision looks for them: filed by tool, and within that by what the call must hold to match.

Rules that name no tool are filed once for all tools. A rule that names tools is bound to each of them when
that tool is first asked about, and is there for the others only if it can match them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from runtime.core.condition import Condition, NamesTools, ReadsToolName
from runtime.core.operators import Verdict
from runtime.core.predicates import UNKNOWN, Bound, Key, Mark, PolicyContext, Test, value_at
from runtime.core.representatives import Questions, questions, representatives

if TYPE_CHECKING:
    from runtime.core.policy import PolicyRule
    from runtime.core.policy_machine import Moves


MAX_INPUTS: Final = 32
"""How many kinds of input a forecast tells apart; beyond, conditions count as independent."""


class Entry(NamedTuple):
    """A default or a rule, bound to a tool.

    Attributes:
        order: Position among all defaults and rules of the policy; unique.
        test: The condition; ``None`` holds always.
        moves: What matching does.
        unsure: What a condition that is neither true nor false does; ``None`` for nothing.
        rule: The rule; ``None`` for a default.
        at: Position of the layer.
    """

    order: int
    test: Test | None
    moves: Moves
    unsure: Moves | None
    rule: PolicyRule | None
    at: int

    def bound(self, condition: Bound) -> tuple[Entry, Key | None]:
        """The entry under a condition that is not constantly false."""
        if isinstance(condition, bool):
            return self, None
        return self._replace(test=condition.test), condition.key


class _Table:
    """Entries that need a value at one place of the call."""

    def __init__(self, key: Key, filed: Sequence[tuple[Entry, Key]]) -> None:
        self._read = _reader(key)
        self.all: Final = [entry for entry, _ in filed]
        self._any: Final = [(entry, needs.verdict) for entry, needs in filed if needs.values is None]
        by_value: dict[Any, list[tuple[Entry, Verdict | None]]] = {}
        for entry, needs in filed:
            for value in set(needs.values or ()):
                by_value.setdefault(value, [*self._any]).append((entry, needs.verdict))
        self._by_value: Final = by_value

    def find(self, context: PolicyContext) -> Sequence[Entry]:
        """What a call may match; that it does is for the tests to say."""
        value = self._read(context)
        if value is Mark.MISSING:
            return ()
        if value is UNKNOWN:
            return self.all
        try:
            filed = self._by_value.get(value, self._any)
        except TypeError:  # a list or an object, which no rule expects
            filed = self._any
        return [entry for entry, verdict in filed if verdict is None or verdict(value) is not False]


def _reader(key: Key) -> Callable[[PolicyContext], Any]:
    name, path = key.field, key.path
    if name == "tool_arguments":
        return lambda context: value_at(context.tool_arguments, path)
    if name == "execution_metadata":
        return lambda context: value_at(context.execution_metadata, path)
    if name == "intent":
        return lambda context: context.intent
    return lambda context: value_at(getattr(context, name), path)


class File:
    """Entries filed under their keys."""

    def __init__(self, entries: Iterable[tuple[Entry, Key | None]]) -> None:
        always: list[Entry] = []
        filed: dict[tuple[str, tuple[str, ...]], list[tuple[Entry, Key]]] = {}
        for entry, key in entries:
            if key is None:
                always.append(entry)
            else:
                filed.setdefault((key.field, key.path), []).append((entry, key))
        self.always: Final = always
        self.tables: Final = [_Table(each[0][1], each) for each in filed.values()]

    def answers(self, context: PolicyContext) -> list[tuple[Entry, bool | None]]:
        """What matches a call, and what is open of it."""
        found = [entry for table in self.tables for entry in table.find(context)]
        tested = ((entry, entry.test is None or entry.test(context)) for entry in (*self.always, *found))
        return [(entry, truth) for entry, truth in tested if truth is not False]


class Program:
    """What is looked at for tools that the rules do not tell apart.

    Attributes:
        shared: Rules that name no tool.
        own: Rules that name some.
    """

    def __init__(self, shared: File, own: File, conditions: Sequence[Condition], common: Questions) -> None:
        self.shared: Final = shared
        self.own: Final = own
        self._always: Final = sorted([*shared.always, *own.always])
        self._tables: Final = [*shared.tables, *own.tables]
        self._own: Final = conditions
        self._common: Final = common

    def candidates(self, context: PolicyContext) -> list[Entry]:
        """What may match a call, in order."""
        found = [entry for table in self._tables for entry in table.find(context)]
        return sorted(self._always + found) if found else self._always

    def everything(self) -> list[Entry]:
        """All that some call to the tool may match, in order."""
        return sorted([*self._always, *(entry for table in self._tables for entry in table.all)])

    @cached_property
    def inputs(self) -> list[dict[str, Any]] | None:
        """Inputs that stand for all; ``None`` where there would be more than `MAX_INPUTS`."""
        found = representatives(self.asked, MAX_INPUTS)
        return None if found is None else list(found)

    @cached_property
    def asked(self) -> Questions:
        """What its conditions ask of the input."""
        own = questions(self._own, "tool_arguments")
        merged = {path: (*self._common.get(path, ()), *own[path]) for path in own}
        return {**self._common, **merged} if own else self._common


class RuleFile:
    """All defaults and rules of one trigger.

    Args:
        entries: With the condition of each rule.
    """

    def __init__(self, entries: Iterable[tuple[Entry, Condition | None]]) -> None:
        self._naming: Final[dict[int, tuple[Entry, Condition]]] = {}
        self._mentions: Final[dict[str, list[int]]] = {}
        self._atoms: Final[dict[str, list[int]]] = {}
        shared: list[tuple[Entry, Key | None]] = []
        conditions: list[Condition] = []
        for entry, when in entries:
            names = tool_names(when)
            if names and when is not None:
                self._file_named(entry, when, names)
                continue
            bound = True if when is None else when.bind(None)
            if bound is not False:
                shared.append(entry.bound(bound))
                conditions += [] if when is None else [when]
        self.reads_name: Final = any(
            isinstance(part, ReadsToolName) for when in (*conditions, *self._named()) for part in when.walk()
        )
        self._shared: Final = File(shared)
        self._common: Final = questions(conditions, "tool_arguments")
        self._others: Final = {
            order: bound
            for order, (_, when) in self._naming.items()
            if (bound := when.bind(None)) is not False
        }
        self._unnamed: Final = self._program((), None)
        self._programs: Final[dict[tuple[int | str, ...], Program]] = {}

    def _named(self) -> Iterable[Condition]:
        return (when for _, when in self._naming.values())

    def _file_named(self, entry: Entry, when: Condition, names: Iterable[str]) -> None:
        self._naming[entry.order] = (entry, when)
        for name in names:
            self._mentions.setdefault(name, []).append(entry.order)
        for number, part in enumerate(when.walk()):
            if isinstance(part, NamesTools):
                for name in part.tool_names:
                    self._atoms.setdefault(name, []).extend((entry.order, number))

    @property
    def names(self) -> Iterable[str]:
        """The tools that rules name."""
        return self._mentions

    def likeness(self, tool_name: str | None) -> tuple[int | str, ...] | None:
        """What tools have in common that all rules treat alike; ``None`` for those that none names."""
        atoms = self._atoms.get(tool_name) if tool_name is not None else None
        if atoms is None and not self.reads_name:
            return None
        return (*(atoms or ()), tool_name or "") if self.reads_name else tuple(atoms or ())

    def program(self, tool_name: str | None) -> Program:
        """What is looked at for a tool; made when the first of its like is asked for."""
        mentioned = self._mentions.get(tool_name) if tool_name is not None else None
        if mentioned is None:
            return self._unnamed
        likeness = self.likeness(tool_name) or ()
        found = self._programs.get(likeness)
        if found is None:
            found = self._programs[likeness] = self._program(mentioned, tool_name)
        return found

    def _program(self, mentioned: Sequence[int], tool_name: str | None) -> Program:
        bound = {**self._others, **{order: self._naming[order][1].bind(tool_name) for order in mentioned}}
        rules = [
            (self._naming[order], condition) for order, condition in bound.items() if condition is not False
        ]
        own = File(entry.bound(condition) for (entry, _), condition in rules)
        return Program(self._shared, own, [when for (_, when), _ in rules], self._common)


def tool_names(when: Condition | None) -> frozenset[str]:
    """The tools that a condition names."""
    parts = () if when is None else when.walk()
    return frozenset[str]().union(*(part.tool_names for part in parts if isinstance(part, NamesTools)))
