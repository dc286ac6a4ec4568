import os

from runtime import AgentRuntime, ExecutionContext

ctx = ExecutionContext(
    run_id="run-agent-session-1",
    task_id="task-agent-session-1",
    session_id="session-agent-session-1",
    allowed_scopes=[],
)

with AgentRuntime.open("workspace.yaml") as runtime:
    turn = runtime.execute_tool(
        "agent:execute-turn",
        {
            "session_id": ctx.session_id,
            "model_profile": "operations",
            "url": os.environ["AGENT_RUNTIME_BASE_URL"],
            "messages": [{"role": "user", "content": "Reschedule the weekly review for tomorrow morning."}],
            "tool_catalog": [
                {
                    "name": "calendar:reschedule-event",
                    "description": "Move an existing calendar event to a new time.",
                },
            ],
            "intent_catalog": [{"id": "scheduling", "description": "Schedule or reschedule work."}],
        },
        ctx,
    )
    print(turn.data["status"], "-", turn.data["intent"], "-", turn.data["requested_tool"]["name"])

    metadata = {
        "agent_intent": turn.data["intent"],
        "agent_turn_index": 0,
        "agent_tool_call_count": 1,
    }
    tool_result = runtime.execute_tool(
        turn.data["requested_tool"]["name"],
        turn.data["requested_tool"]["input"],
        ctx.model_copy(update={"metadata": metadata}),
    )
    print(tool_result.data)
    print(runtime.verify(ctx.session_id))
