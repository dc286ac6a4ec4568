"""From a loaded step to what the kernel, the chain and the tool are told of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from runtime.core.chain import Chain
from runtime.core.model import ExecutionContext
from runtime.engine.parts import worker_name
from runtime.engine.turns import PreparedTurn
from runtime.kernel.verdict import Call, Grant
from runtime.store.steps import LoadedStep


def context_of(step: LoadedStep) -> ExecutionContext:
    """The context that a step's session keeps."""
    kept = json.loads(step.context)
    return ExecutionContext.model_validate(
        {
            **kept,
            "run_id": step.run_id,
            "task_id": step.task_id,
            "session_id": step.session_id,
            "principal": step.principal,
        }
    )


def new_chain(step: LoadedStep, ctx: ExecutionContext, workspace_hash: str) -> Chain:
    """The chain of the next attempt at a step."""
    common = {
        "session_id": step.session_id,
        "node_id": step.node_id,
        "run_id": ctx.run_id,
        "task_id": ctx.task_id,
        "principal": ctx.principal,
        "tool_name": step.tool_name,
        "call_id": step.call_id,
        "agent_intent": step.intent,
        "turn_index": step.turn_index,
        "execution_mode": "worker",
        "workspace_hash": workspace_hash,
        "worker": worker_name(),
    }
    return Chain(step.id, step.fence + 1, step.chain_cites, common=common)


def catalog_names(turn_input: Mapping[str, Any]) -> frozenset[str] | None:
    """The tools that a turn was given; ``None`` if it was given no list and gets the governed one."""
    catalog = turn_input.get("tool_catalog")
    return None if catalog is None else frozenset(tool["name"].strip() for tool in catalog)


def call_of(step: LoadedStep, ctx: ExecutionContext, prepared: PreparedTurn | None = None) -> Call:
    """The call that the kernel decides for a step."""
    grant = None
    if step.approval_id is not None:
        grant = Grant(
            request_id=step.approval_id,
            status=step.approval_status or "missing",
            digest=step.approval_digest or "",
            expires_at=step.approval_expires_at or 0,
            consumed_by=step.approval_consumed_by,
            binding=True,
        )
    return Call(
        tool_name=step.tool_name,
        input=prepared.manifest if prepared else json.loads(step.input or "null"),
        ctx=ctx,
        session_id=step.session_id,
        node_id=step.node_id,
        step_id=step.id,
        call_id=step.call_id or step.id,
        intent=step.intent,
        turn_index=step.turn_index,
        tool_calls=step.calls_before,
        now=step.now,
        grant=grant,
        deadline_at=step.deadline_at,
        catalog=None if step.is_turn else catalog_names(json.loads(step.definition).get("turn", {})),
        network=prepared.network if prepared else (),
    )
