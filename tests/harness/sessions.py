"""Short ways to say what a session should do."""

from runtime import ExecutionContext, Workflow, WorkflowNode


def context(session_id="s-1", **values) -> ExecutionContext:
    """A context of the test application."""
    return ExecutionContext(run_id="run-1", task_id="task-1", session_id=session_id, **values)


def script(*turns: str) -> str:
    """A user message that tells the scripted model what to do, turn by turn."""
    return "\n/turn\n".join(turns)


def call(tool: str, name: str = "x", **values) -> str:
    """One scripted call of a ledger tool."""
    import json

    return f"/call {tool} {json.dumps({'name': name, **values})}"


def turn_input(*turns: str, **values) -> dict:
    """The input of a turn whose conversation is scripted."""
    return {
        "model_profile": "operations",
        "messages": [{"role": "user", "content": script(*turns)}],
        **values,
    }


def workflow(session_id: str, **nodes: tuple) -> Workflow:
    """A workflow; each node is ``(turns, depends_on)``."""
    return Workflow(
        session_id=session_id,
        nodes=[
            WorkflowNode(id=name, execute_turn_input=turn_input(*turns), depends_on=depends)
            for name, (turns, depends) in nodes.items()
        ],
    )
