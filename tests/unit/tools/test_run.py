"""Running one call in this process: whatever a tool does becomes an output."""

from __future__ import annotations

import asyncio
import threading
from datetime import date

import pytest
from pydantic import BaseModel

from runtime.core.model import ToolFailure, ToolOutput
from runtime.errors import ErrorCode, InvalidInput, ToolError
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool
from runtime.tools.reconcile import Reconciliation, call_reconcile
from runtime.tools.run import call_tool


class Day(BaseModel):
    day: date


CTX = ToolContext(session_id="s", node_id="n", run_id="r", task_id="t", call_id="c", idempotency_key="k")


def call(handler, input=None, **declaration):
    definition = tool("t:x", description="x", **declaration)(handler)
    return call_tool(definition, {} if input is None else input, CTX)


def returning(value):
    return lambda input, ctx: value


def raising(error):
    def handler(input, ctx):
        raise error

    return handler


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "x", [], {}, {"a": [None, {"b": "\ud800"}]}])
def test_plain_json_is_returned_as_it_is(value):
    assert call(returning(value)) == ToolOutput(success=True, data=value)


def test_models_dates_and_tuples_become_plain_json():
    assert call(returning(Day(day=date(2026, 1, 2)))).data == {"day": "2026-01-02"}
    assert call(returning({"d": date(2026, 1, 2), "t": (1, 2)})).data == {"d": "2026-01-02", "t": [1, 2]}


def test_an_async_function_runs_to_its_end():
    async def handler(input, ctx):
        await asyncio.to_thread(threading.get_ident)
        return input

    assert call(handler, {"a": 1}).data == {"a": 1}


def test_an_async_function_runs_also_where_a_loop_is_running():
    async def handler(input, ctx):
        await asyncio.to_thread(threading.get_ident)
        return "done"

    async def main():
        return call(handler)

    assert asyncio.run(main()).data == "done"


@pytest.mark.parametrize(
    "error", [ValueError("no"), SystemExit(3), GeneratorExit(), asyncio.CancelledError()]
)
def test_whatever_is_raised_is_a_failed_execution(error):
    output = call(raising(error))
    assert output.error.code == ErrorCode.TOOL_EXECUTION_FAILED
    assert output.error.message.startswith(f"t:x raised {type(error).__name__}")


def test_only_an_interrupt_of_the_process_gets_through():
    with pytest.raises(KeyboardInterrupt):
        call(raising(KeyboardInterrupt()))


def test_a_tool_error_keeps_its_code_and_details():
    output = call(raising(ToolError("no such event", code="EVENT_NOT_FOUND", details={"id": 1})))
    assert output.error == ToolFailure(code="EVENT_NOT_FOUND", message="no such event", details={"id": 1})


def test_secrets_of_the_environment_do_not_appear_in_errors(monkeypatch):
    monkeypatch.setenv("SERVICE_TOKEN", "t0p-s3cret")
    output = call(raising(ToolError("bad t0p-s3cret", details={"a": ["t0p-s3cret"]})))
    assert (output.error.message, output.error.details) == ("bad ***", {"a": ["***"]})


def test_an_output_is_taken_as_it_is_with_its_metadata():
    given = ToolOutput(success=True, data={"a": 1}, metadata={"seen": 2})
    assert call(returning(given)) == given
    failed = ToolOutput.failed("SCOPE_DENIED", "not there")
    assert call(returning(failed)) == failed


def test_a_model_with_a_number_that_is_none_is_an_invalid_output():
    class Share(BaseModel):
        parts: list[float]

    assert call(returning(Share(parts=[float("nan")]))).error.code == ErrorCode.INVALID_OUTPUT


@pytest.mark.parametrize(
    "value",
    [
        object(),
        float("nan"),
        {"a": float("inf")},
        ToolOutput(success=False),
        ToolOutput(success=False, data=1, error=ToolFailure(code="X", message="x")),
        ToolOutput(success=True, data=object()),
    ],
)
def test_what_is_no_json_is_an_invalid_output(value):
    assert call(returning(value)).error.code == ErrorCode.INVALID_OUTPUT


def test_an_output_that_does_not_fit_its_annotation_is_invalid_with_its_path():
    def handler(input: dict, ctx: ToolContext) -> Day:
        return {"day": "someday"}  # type: ignore[return-value]

    output = call(handler)
    assert output.error.code == ErrorCode.INVALID_OUTPUT
    assert [problem["path"] for problem in output.error.details["problems"]] == ["day"]


def test_a_model_that_was_spoilt_after_it_was_made_is_an_invalid_output():
    def handler(input: dict, ctx: ToolContext) -> Day:
        day = Day(day=date(2026, 1, 2))
        day.day = "someday"  # type: ignore[assignment]
        return day

    assert call(handler).error.code == ErrorCode.INVALID_OUTPUT


def test_an_output_that_does_not_fit_its_schema_is_invalid():
    output = call(returning({"n": "1"}), output_schema={"properties": {"n": {"type": "integer"}}})
    assert output.error.code == ErrorCode.INVALID_OUTPUT


def test_progress_must_be_plain_json():
    heard = []
    ctx = ToolContext.from_json(CTX.to_json(), on_progress=heard.append)
    ctx.progress({"percent": 50})
    with pytest.raises(InvalidInput):
        ctx.progress(object())
    assert heard == [{"percent": 50}]


def test_a_context_survives_the_way_through_json():
    assert ToolContext.from_json(CTX.to_json()) == CTX


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Reconciliation.happened({"a": 1}), "happened"),
        (Reconciliation.prevented(), "prevented"),
        (Reconciliation.unknown(), "unknown"),
        (Reconciliation.happened(object()), "unknown"),
        (True, "unknown"),
        (None, "unknown"),
    ],
)
def test_only_a_reconciliation_counts_as_knowing(answer, outcome):
    definition = tool("t:x", description="x", reconcile=lambda key: answer)(returning(1))
    assert call_reconcile(definition, "k").outcome == outcome
