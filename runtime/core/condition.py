"""What every kind of condition has in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator

from pydantic import ConfigDict
from typing_extensions import override

from runtime.core.model import Frozen
from runtime.core.predicates import Bound, PolicyContext


class Condition(Frozen):
    """Base of all conditions."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    @abstractmethod
    def bind(self, tool_name: str | None) -> Bound:
        """Specialise the condition to one tool; a constant where nothing else matters.

        Args:
            tool_name: The tool, or ``None`` for every tool that no condition names.
        """

    def walk(self) -> Iterator[Condition]:
        """The condition and those within it."""
        yield self

    def doubt(self, context: PolicyContext) -> str | None:
        """Why the condition itself can be neither true nor false of a call; ``None`` if it can."""
        return None


class NamesTools(Condition):
    """A condition on the tool's name alone."""

    @property
    @abstractmethod
    def tool_names(self) -> frozenset[str]:
        """The names that it mentions."""

    @override
    def bind(self, tool_name: str | None) -> Bound:
        return tool_name in self.tool_names


class ReadsToolName(Condition):
    """A condition that looks at the tool's name when it is tested."""
