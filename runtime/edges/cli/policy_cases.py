"""Files of expected decisions, as ``agent-runtime policy test`` reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from runtime.core.model import Decision, Frozen
from runtime.errors import ConfigurationError
from runtime.workspace_yaml import read_yaml


class PolicyCase(Frozen):
    """One call and how it must be decided.

    Attributes:
        tool: The tool's name.
        expect: The decision.
        name: Shown where it fails.
        rule: Id of a rule that must match.
        input: The tool's input.
        intent: The turn's intent.
        lane: The lane of the call.
        metadata: The context's metadata.
        at: RFC 3339 instant of the decision; now, unless given.
        turn: Turns before the call.
        tool_calls: Tool calls before it.
    """

    tool: str
    expect: Annotated[Decision, Field(strict=False)]
    name: str | None = None
    rule: str | None = None
    input: Any = Field(default_factory=dict)
    intent: str | None = None
    lane: str | None = None
    metadata: dict[str, Any] = Field(default_factory=dict)
    at: str | None = None
    turn: Annotated[int, Field(ge=0)] = 0
    tool_calls: Annotated[int, Field(ge=0)] = 0


class _Cases(Frozen):
    cases: Annotated[tuple[PolicyCase, ...], Field(strict=False, min_length=1)]


def read_cases(path: Path) -> tuple[PolicyCase, ...]:
    """Read a file of cases.

    Raises:
        ConfigurationError: Naming the file, the place and what is wrong there.
    """
    try:
        document = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} cannot be read ({error}) — name a YAML file with cases") from None
    if document.problems:
        raise ConfigurationError("\n".join(problem.at(path.name) for problem in document.problems))
    try:
        return _Cases.model_validate(document.value).cases
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigurationError(
            f"{path.name}: {place}: {first['msg']} — write cases: [{{tool: ..., input: ..., expect: deny}}]"
        ) from None
