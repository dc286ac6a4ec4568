"""Checks a tool's input and output against what its declaration promises."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from pydantic import BaseModel, TypeAdapter, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable

from runtime.core.canonical import canonical_json
from runtime.core.model import Json
from runtime.errors import ConfigurationError, InvalidInput

ANY_OBJECT: dict[str, Json] = {"type": "object", "additionalProperties": True}
"""The input schema of a tool that declares none."""

Problems = list[dict[str, str]]
"""``[{"path": "attendees[0].email", "problem": "…"}]``; never the value, which may be a secret."""


def close(schema: Json) -> Json:
    """Say ``additionalProperties: false`` wherever a schema lists properties and leaves the question open.

    A schema that combines others (``allOf``, ``$ref`` …) is left as it is, because its parts see each
    other's properties as additional.
    """
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed: dict[str, Json] = {}
    for key, value in schema.items():
        if key in ("properties", "$defs", "patternProperties") and isinstance(value, dict):
            closed[key] = {name: close(below) for name, below in value.items()}
        elif key in ("items", "prefixItems", "additionalProperties", "anyOf", "oneOf", "not"):
            closed[key] = close(value)
        else:
            closed[key] = value
    combines = {"allOf", "anyOf", "oneOf", "$ref", "if", "unevaluatedProperties", "patternProperties"} & set(
        closed
    )
    if not combines and ("properties" in closed or closed.get("type") == "object"):
        closed.setdefault("additionalProperties", False)
    return closed


def require_schema(schema: Json, *, source: str) -> None:
    """Refuse what is not a JSON Schema of an object.

    Raises:
        ConfigurationError: With the place in the schema that is wrong.
    """
    try:
        Draft202012Validator.check_schema(schema)
        canonical_json(schema)
    except SchemaError as error:
        raise ConfigurationError(
            f"{source} is wrong at {error.json_path}: {error.message} — see https://json-schema.org"
        ) from error
    except InvalidInput as error:
        raise ConfigurationError(f"{source} is not plain JSON: {error}") from error


def schema_problems(schema: dict[str, Json], value: Json) -> Problems:
    """What of ``value`` does not fit ``schema``; references to other documents are never fetched."""
    validator = Draft202012Validator(schema, registry=Registry())
    try:
        errors = sorted(validator.iter_errors(value), key=lambda error: error.json_path)
    except (Unresolvable, RecursionError) as error:
        return [{"path": "", "problem": f"the schema cannot be applied: {error}"}]
    return [{"path": _dotted(error.absolute_path), "problem": _without_value(error)} for error in errors[:20]]


def _without_value(error: Any) -> str:
    """Say the rule; the library's own messages begin with the value."""
    rule = error.validator
    if rule == "required":
        missing = [name for name in error.validator_value if name not in error.instance]
        return f"lacks {', '.join(repr(name) for name in missing)}"
    if rule == "additionalProperties":
        known = ", ".join(error.schema.get("properties", {})) or "no keys"
        return f"has keys that are not allowed; allowed: {known}"
    return f"does not fit {rule}: {json.dumps(error.validator_value)[:200]}"


def model_problems(error: ValidationError) -> Problems:
    """A pydantic error as paths and problems."""
    return [
        {"path": _dotted(item["loc"]), "problem": item["msg"]}
        for item in error.errors(include_url=False, include_input=False, include_context=False)[:20]
    ]


def parse_input(model: type[BaseModel], schema: dict[str, Json], value: Json) -> BaseModel:
    """Read a JSON value into a model, strictly: no text for a number, and no key that the schema lacks.

    Raises:
        InvalidInput: Listing the problems with their paths.
    """
    text = canonical_json(value)
    try:  # nearly always; what fails here may fit all the same, as where the model takes further keys
        return model.model_validate_json(text, strict=True, extra="forbid")
    except ValidationError:
        pass
    try:
        parsed = model.model_validate_json(text, strict=True)
    except ValidationError as error:
        if error.errors(include_url=False)[0]["type"] != "json_invalid":
            raise refused(model_problems(error)) from None
        # pydantic's own JSON reader refuses lone surrogates, which our JSON may hold.
        try:
            parsed = model.model_validate(value, strict=True)
        except ValidationError as again:
            raise refused(model_problems(again)) from None
    unknown = [problem for problem in schema_problems(schema, value) if "not allowed" in problem["problem"]]
    if unknown:
        raise refused(unknown)
    return parsed


def refused(problems: Problems) -> InvalidInput:
    """The error for an input that does not fit."""
    listed = "; ".join(": ".join(filter(None, [item["path"], item["problem"]])) for item in problems)
    return InvalidInput(f"the input does not fit the tool's schema: {listed}", details={"problems": problems})


def plain_output(adapter: TypeAdapter[Any], value: Any) -> Json:
    """A tool's result as plain JSON of the declared type.

    Raises:
        ValueError: (pydantic's errors are ValueErrors.) If it does not fit.
        InvalidInput: If it cannot be said in JSON.
    """
    value = adapter.validate_python(value)
    _require_finite(adapter.dump_python(value, warnings="error"))
    data = adapter.dump_python(value, mode="json", warnings="error")
    canonical_json(data)
    return data


def _require_finite(value: Any) -> None:
    """In JSON mode pydantic would turn what is no number into null, without a word."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")
    if isinstance(value, Mapping):
        value = value.values()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Iterator):
        for item in value:
            _require_finite(item)


def _dotted(path: Iterable[str | int]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")
