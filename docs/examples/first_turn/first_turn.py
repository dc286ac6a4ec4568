from runtime import AgentRuntime, ExecutionContext, create_tool_result_message

ctx = ExecutionContext(
    run_id="run-agent-session-1",
    task_id="task-agent-session-1",
    session_id="session-agent-session-1",
    allowed_scopes=[],
)
messages = [{"role": "user", "content": "Reschedule the weekly review for tomorrow morning."}]

with AgentRuntime.open("workspace.yaml") as runtime:
    for turn_index in range(4):
        turn = runtime.execute_tool(
            "agent:execute-turn",
            {
                "session_id": ctx.session_id,
                "model_profile": "operations",
                "messages": messages,
                "tool_catalog": [
                    {
                        "name": "calendar:reschedule-event",
                        "description": "Move an existing calendar event to a new time.",
                    },
                    {"name": "calendar:list-events", "description": "List all events."},
                ],
                "intent_catalog": [{"id": "scheduling", "description": "Schedule or reschedule work."}],
            },
            ctx,
        ).unwrap()
        if turn["status"] != "tool_request":
            print(turn["status"], "-", turn["assistant_message"])
            break

        requested = turn["requested_tool"]
        metadata = {
            "agent_intent": turn["intent"],
            "agent_turn_index": turn_index,
            "agent_tool_call_count": turn_index + 1,
        }
        result = runtime.execute_tool(
            requested["name"], requested["input"], ctx.model_copy(update={"metadata": metadata})
        )
        print(requested["name"], "->", result.data if result.success else result.error)
        messages.append(
            create_tool_result_message(
                tool_name=requested["name"], tool_call_id=f"call-{turn_index + 1}", output=result
            )
        )

    print("evidence:", runtime.verify(ctx.session_id))
