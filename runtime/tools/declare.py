"""The `tool` decorator, and what it makes of a function."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from pydantic import BaseModel, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic.errors import PydanticInvalidForJsonSchema

from runtime.core.canonical import canonical_json, digest
from runtime.core.model import TURN_TOOL, Effect, Json, RetryPolicy, Scope
from runtime.errors import ConfigurationError
from runtime.tools.schema import ANY_OBJECT, close, parse_input, refused, require_schema, schema_problems

ScopesMode = Literal["all", "any"]
_NAME = re.compile(r"\S(.{0,198}\S)?")
_SCOPES: TypeAdapter[tuple[Scope, ...]] = TypeAdapter(tuple[Scope, ...])


@dataclass(frozen=True, eq=False)
class ToolDefinition:
    """A declared tool; calling it calls its function.

    Attributes:
        name: What the model, policy and receipts call it, such as ``calendar:create-event``.
        description: One paragraph for the model.
        input_schema: JSON Schema of the input.
        output_schema: JSON Schema of the output; None promises nothing but plain JSON.
        scopes: What a call must be allowed to touch.
        effect: What a crash in mid-call means.
        queue: Celery queue that its calls run on.
        time_limit: Seconds after which a call is cut off.
        handler: The function, sync or async: ``(input, ctx) -> output``.
        reconcile: ``(idempotency_key) -> Reconciliation`` for calls in doubt.
        retry: How often and when a failed call is made again before the model is told; None for never.
        version: Part of the digest; raise it when the meaning changes but the schema does not.
        scopes_mode: Whether all of ``scopes`` must be allowed, or one suffices.
        server: The server that the tool lives on, if it is not a function of ours.
        input_model: Class of the handler's first argument; None for a plain dict.
        output_type: Type of the handler's result, if it is annotated.
    """

    name: str
    description: str
    input_schema: dict[str, Json]
    handler: Callable[..., Any] = field(repr=False)
    output_schema: dict[str, Json] | None = None
    scopes: tuple[Scope, ...] = ()
    effect: Effect = Effect.ONCE
    queue: str = "tools"
    time_limit: float = 60.0
    reconcile: Callable[..., Any] | None = field(default=None, repr=False)
    retry: RetryPolicy | None = None
    version: str = "1"
    scopes_mode: ScopesMode = "all"
    server: str | None = None
    input_model: type[BaseModel] | None = None
    output_type: TypeAdapter[Any] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Refuse the name under which the kernel itself makes model calls.

        Raises:
            ConfigurationError: If the tool has it; the kernel would never run it.
        """
        if self.name == TURN_TOOL:
            raise _wrong(self.name, "is the name of the kernel's own model call — give the tool another name")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself: no check, no governance."""
        return self.handler(*args, **kwargs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of what a grant for this tool rests on."""
        return digest(
            {
                "name": self.name,
                "schema": {"input": self.input_schema, "output": self.output_schema},
                "version": self.version,
                "scopes": sorted(
                    (scope.model_dump(mode="json") for scope in self.scopes), key=canonical_json
                ),
                "scopes_mode": self.scopes_mode,
                "effect": self.effect.value,
                "server": self.server,
            }
        )

    @property
    def origin(self) -> str:
        """Where it was declared, for error messages."""
        if self.server is not None:
            return f"server {self.server}"
        code = getattr(inspect.unwrap(self.handler), "__code__", None)
        return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(self.handler)

    def parse(self, value: Json) -> Any:
        """Check an input and turn it into what the handler takes.

        Raises:
            InvalidInput: Listing what does not fit, with paths.
        """
        if not isinstance(value, dict):
            raise refused([{"path": "", "problem": "is not an object"}])
        if self.input_model is not None:
            return parse_input(self.input_model, self.input_schema, value)
        canonical_json(value)
        if problems := schema_problems(self.input_schema, value):
            raise refused(problems)
        return value


def tool(
    name: str,
    *,
    description: str | None = None,
    scopes: Iterable[Scope | Mapping[str, Json]] = (),
    effect: Effect | str = Effect.ONCE,
    queue: str = "tools",
    time_limit: float = 60.0,
    scopes_mode: ScopesMode = "all",
    reconcile: Callable[..., Any] | None = None,
    retry: RetryPolicy | Mapping[str, Json] | None = None,
    version: str = "1",
    input_schema: Mapping[str, Json] | None = None,
    output_schema: Mapping[str, Json] | None = None,
) -> Callable[[Callable[..., Any]], ToolDefinition]:
    """Declare a function ``(input, ctx) -> output`` as a tool.

    The input is a pydantic model, or a ``dict`` described by ``input_schema`` (JSON Schema, closed: keys it
    does not list are refused unless it says ``additionalProperties``). The output is whatever the return
    annotation says, as plain JSON. ``description`` defaults to the docstring's first paragraph.

    Raises:
        ConfigurationError: If the declaration is wrong; the message says how to mend it.
    """
    frame = sys._getframe(1)

    def declare(function: Callable[..., Any]) -> ToolDefinition:
        hints = _hints(name, function, {**frame.f_globals, **frame.f_locals})
        model = _input_model(name, function, hints, input_schema)
        output = None if output_schema is not None else _output_type(name, hints)
        definition = ToolDefinition(
            name=_checked_name(name),
            description=description or _first_paragraph(name, function),
            input_schema=_input_schema(model, input_schema),
            output_schema=dict(close(dict(output_schema)))
            if output_schema is not None
            else _schema_of(name, output),
            scopes=_checked_scopes(name, scopes),
            effect=_checked_effect(name, effect),
            queue=queue,
            time_limit=_checked_time_limit(name, time_limit),
            handler=function,
            reconcile=reconcile,
            retry=_checked_retry(name, _checked_effect(name, effect), retry),
            version=version,
            scopes_mode=scopes_mode,
            input_model=model,
            output_type=output,
        )
        require_schema(definition.input_schema, source=f"input_schema of tool {name!r}")
        if definition.output_schema is not None:
            require_schema(definition.output_schema, source=f"output_schema of tool {name!r}")
        return definition

    return declare


# --- checks ---------------------------------------------------------------------------------------


def _wrong(name: str, what: str) -> ConfigurationError:
    return ConfigurationError(f"tool {name!r}: {what}")


def _checked_name(name: str) -> str:
    if not _NAME.fullmatch(name) or not name.isprintable():
        raise _wrong(name, "the name must be 1-200 printable characters — write e.g. 'calendar:create-event'")
    return name


def _checked_scopes(name: str, scopes: Iterable[Scope | Mapping[str, Json]]) -> tuple[Scope, ...]:
    try:
        return _SCOPES.validate_python(tuple(scopes))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise _wrong(
            name,
            f"scopes{list(problem['loc'])}: {problem['msg']} — write e.g. "
            "{'type': 'path', 'pattern': 'calendar/**', 'access': 'write'}",
        ) from None


def _checked_effect(name: str, effect: Effect | str) -> Effect:
    try:
        return Effect(effect)
    except ValueError:
        raise _wrong(name, f"effect {effect!r} — write 'read', 'idempotent' or 'once'") from None


def _checked_time_limit(name: str, time_limit: float) -> float:
    if not 0 < time_limit < float("inf"):
        raise _wrong(name, f"time_limit {time_limit!r} — write a number of seconds above 0")
    return float(time_limit)


def _checked_retry(
    name: str, effect: Effect, retry: RetryPolicy | Mapping[str, Json] | None
) -> RetryPolicy | None:
    if retry is None:
        return None
    try:
        policy = retry if isinstance(retry, RetryPolicy) else RetryPolicy.model_validate(dict(retry))
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        raise _wrong(
            name, f"retry{list(problem['loc'])}: {problem['msg']} — write e.g. {{'attempts': 3}}"
        ) from None
    if effect is Effect.ONCE and policy.retry_on is None:
        raise _wrong(
            name,
            "is a 'once' tool with a retry — name in retry_on the codes of its ToolErrors that say that "
            "nothing was done",
        )
    return policy


def _first_paragraph(name: str, function: Callable[..., Any]) -> str:
    text = " ".join((inspect.getdoc(function) or "").split("\n\n")[0].split())
    if not text:
        raise _wrong(name, "has no description — write a docstring, or pass description='…'")
    return text


def _hints(name: str, function: Callable[..., Any], namespace: dict[str, Any]) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, localns=namespace, include_extras=True)
    except NameError as error:
        raise _wrong(
            name, f"an annotation names something unknown ({error}) — import or define it"
        ) from error


def _input_model(
    name: str, function: Callable[..., Any], hints: dict[str, Any], schema: Mapping[str, Json] | None
) -> type[BaseModel] | None:
    parameters = [
        parameter.name
        for parameter in inspect.signature(function).parameters.values()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    if len(parameters) != 2:
        raise _wrong(name, f"takes {len(parameters)} arguments — write def {function.__name__}(input, ctx)")
    annotation = hints.get(parameters[0], dict)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        if schema is not None:
            raise _wrong(name, "has a model and an input_schema — keep one of them")
        return annotation
    origin = typing.get_origin(annotation) or annotation
    if origin in (dict, Mapping, Any):
        return None
    raise _wrong(name, f"its input is a {annotation!r} — annotate it with a pydantic model or dict")


def _input_schema(model: type[BaseModel] | None, schema: Mapping[str, Json] | None) -> dict[str, Json]:
    if model is not None:
        return dict(close(model.model_json_schema()))
    return dict(close(dict(schema))) if schema is not None else dict(ANY_OBJECT)


def _output_type(name: str, hints: dict[str, Any]) -> TypeAdapter[Any] | None:
    annotation = hints.get("return", Any)
    if annotation is Any:
        return None
    try:
        return TypeAdapter(annotation)
    except PydanticSchemaGenerationError as error:
        raise _wrong(
            name, f"its output {annotation!r} has no JSON form — return a pydantic model or JSON"
        ) from error


def _schema_of(name: str, output: TypeAdapter[Any] | None) -> dict[str, Json] | None:
    if output is None:
        return None
    try:
        return output.json_schema(mode="serialization")
    except PydanticInvalidForJsonSchema as error:
        raise _wrong(
            name, f"its output has no JSON Schema ({error.message}) — return a model or JSON"
        ) from error
