"""Runs one call of one tool in this process; whatever it does becomes an output."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import Awaitable
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from runtime.core.canonical import canonical_json
from runtime.core.model import Json, ToolFailure, ToolOutput
from runtime.errors import ErrorCode, InvalidInput, ToolError
from runtime.tools.context import ToolContext
from runtime.tools.declare import ToolDefinition
from runtime.tools.redact import redact, redact_json
from runtime.tools.schema import Problems, model_problems, plain_output, schema_problems

_log = logging.getLogger(__name__)
_ANYTHING: TypeAdapter[Any] = TypeAdapter(Any)


def call_tool(definition: ToolDefinition, input_json: Json, ctx: ToolContext) -> ToolOutput:
    """Check the input, run the handler, check its result.

    Returns:
        The output; an input that does not fit is INVALID_INPUT, a result that does not fit INVALID_OUTPUT,
        and whatever the handler raises, `SystemExit` included, TOOL_EXECUTION_FAILED or the code of its
        `ToolError`.

    Raises:
        KeyboardInterrupt: Only this, since it is meant for the process.
    """
    try:
        return _call(definition, input_json, ctx)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - a tool may raise anything, and none of it is ours
        _log.exception("tool %s failed", definition.name)
        message = f"{definition.name} raised {type(error).__name__}: {_said(error)}".rstrip(": ")
        return ToolOutput.failed(ErrorCode.TOOL_EXECUTION_FAILED, redact(message))


def _call(definition: ToolDefinition, input_json: Json, ctx: ToolContext) -> ToolOutput:
    try:
        parsed = definition.parse(input_json)
    except InvalidInput as error:
        return ToolOutput.failed(ErrorCode.INVALID_INPUT, str(error), error.details)
    try:
        result = finish(definition.handler(parsed, ctx))
    except ToolError as error:
        return _reported(str(error.code), _said(error), error.details)
    return checked_output(definition, result)


def _said(error: BaseException) -> str:
    """The text of an error; making it runs code of the tool's own classes, which may fail as well."""
    try:
        return str(error)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:  # noqa: BLE001 - as above
        return f"(its text could not be made: {type(failure).__name__})"


def finish(result: Any) -> Any:
    """The result itself, or what an async function's result comes to."""
    if not inspect.isawaitable(result):
        return result
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(_await(result))
    return _in_own_thread(result)


async def _await(result: Awaitable[Any]) -> Any:
    return await result


def _in_own_thread(result: Awaitable[Any]) -> Any:
    """A thread has one loop at most, and the caller's is running."""
    outcome: list[Any] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(_await(result)))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="async-tool")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def checked_output(definition: ToolDefinition, result: Any) -> ToolOutput:
    """A handler's result as an output; one that is an output already keeps its metadata and its error.

    An error beside the data of a success is a warning: the caller sees it, and evidence keeps it.
    """
    if isinstance(result, ToolOutput) and not result.success:
        failure = result.error
        if failure is None or result.data is not None:
            return _invalid(definition, [{"path": "", "problem": "failed without an error, or with data"}])
        return _reported(failure.code, failure.message, failure.details, result.metadata)
    warning: ToolFailure | None = None
    metadata: dict[str, Any] = {}
    if isinstance(result, ToolOutput):
        if result.error is not None:
            warning = _reported(result.error.code, result.error.message, result.error.details).error
        result, metadata = result.data, result.metadata
    try:
        data = _plain(definition, result)
        canonical_json(metadata)
    except ValidationError as error:
        return _invalid(definition, model_problems(error))
    except Exception as error:  # noqa: BLE001 - serialising runs code of the tool's own classes
        return _invalid(definition, [{"path": "", "problem": redact(_said(error))}])
    if definition.output_schema is not None and definition.output_type is None:
        problems = schema_problems(definition.output_schema, data)
        if problems:
            return _invalid(definition, problems)
    return ToolOutput(success=True, data=data, error=warning, metadata=metadata)


def _plain(definition: ToolDefinition, result: Any) -> Json:
    if definition.output_type is not None:
        return plain_output(definition.output_type, result)
    if isinstance(result, BaseModel):
        return plain_output(_ANYTHING, result)
    try:
        canonical_json(result)
    except InvalidInput:
        return plain_output(_ANYTHING, result)
    return result


def _reported(
    code: str, message: str, details: dict[str, Any], metadata: dict[str, Any] | None = None
) -> ToolOutput:
    failed = ToolOutput.failed(code, redact(message), redact_json(_plain_or_empty("details", details)))
    return failed.model_copy(update={"metadata": _plain_or_empty("metadata", metadata or {})})


def _plain_or_empty(what: str, content: dict[str, Any]) -> dict[str, Any]:
    """What a failure brings along must not hide the failure."""
    try:
        canonical_json(content)
    except InvalidInput:
        _log.warning("the %s of a tool's error are not plain JSON and are left out", what)
        return {}
    return content


def _invalid(definition: ToolDefinition, problems: Problems) -> ToolOutput:
    listed = "; ".join(": ".join(filter(None, [item["path"], item["problem"]])) for item in problems)
    return ToolOutput.failed(
        ErrorCode.INVALID_OUTPUT,
        f"{definition.name} returned what its declaration does not promise: {listed}",
        {"problems": problems},
    )
