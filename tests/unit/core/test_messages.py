"""Messages: what the host says, what a tool answered, what a person decided."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from runtime.core.messages import (
    build_governed_tool_catalog,
    create_approval_resolution_message,
    create_host_context_messages,
    create_tool_result_message,
)
from runtime.core.model import ToolOutput
from runtime.errors import InvalidInput


def test_blank_context_is_left_out_and_the_order_is_fixed():
    messages = create_host_context_messages(
        additional_context=["", " note "], memory_summary="known", task_summary=" \n"
    )
    assert [message["content"] for message in messages] == [
        "Memory context:\nknown",
        "Additional context:\nnote",
    ]


@pytest.mark.parametrize(
    ("output", "content"),
    [
        (ToolOutput(success=True, data={"id": 1}), {"success": True, "data": {"id": 1}}),
        (ToolOutput(success=True), {"success": True, "data": None}),
        (ToolOutput.failed("E", "no"), {"success": False, "error": {"code": "E", "message": "no"}}),
        (
            ToolOutput.failed("E", "no", {"a": 1}),
            {"success": False, "error": {"code": "E", "message": "no", "details": {"a": 1}}},
        ),
    ],
)
def test_a_tool_result_is_its_data_or_its_error(output, content):
    message = create_tool_result_message(tool_name="x:do", tool_call_id="c1", output=output)
    assert json.loads(message["content"]) == content


def test_a_result_is_always_encodable():
    output = ToolOutput(success=True, data="\ud800é")
    content = create_tool_result_message(tool_name="x:do", tool_call_id="c1", output=output)["content"]
    assert json.loads(content.encode())["data"] == "\ud800é"


def test_a_result_that_is_not_json_is_refused():
    with pytest.raises(InvalidInput):
        create_tool_result_message(
            tool_name="x:do", tool_call_id="c1", output={"success": True, "data": float("nan")}
        )


def test_an_empty_reason_is_left_out_of_an_answer():
    message = create_approval_resolution_message(
        request_id="r1", approved=False, approved_by="a@example.com", reason=""
    )
    assert message["tool_name"] == "kernel:approval"
    assert json.loads(message["content"]) == {
        "approval": {"request_id": "r1", "approved": False, "approved_by": "a@example.com"}
    }


def test_a_given_exclusion_replaces_the_default():
    tools = [
        SimpleNamespace(capability=SimpleNamespace(name=name, description="d"))
        for name in ("agent:execute-turn", "x:do")
    ]
    assert build_governed_tool_catalog(governed_tools=tools) == [{"name": "x:do", "description": "d"}]
    assert [
        entry["name"]
        for entry in build_governed_tool_catalog(governed_tools=tools, exclude_tool_names=["x:do"])
    ] == ["agent:execute-turn"]
