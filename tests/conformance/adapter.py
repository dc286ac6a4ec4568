"""Feeds conformance records to the library: one thin function per file, plain JSON in and out.

The formats are those of ``vectors/README.md``. A call that raises one of the library's errors yields
``{"raises": True, ...}``, or ``config_error`` where the records say so.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter

from runtime.core import canonical
from runtime.core import intents as intent_rules
from runtime.core import messages as host_messages
from runtime.core import scopes as scope_rules
from runtime.core.conditions import PolicyContext
from runtime.core.model import Decision, Scope
from runtime.core.policy import PolicyLayer, compile_policy
from runtime.errors import ConfigurationError, InvalidInput

_LAYERS = ("workspace_allowed", "lane_allowed", "task_declared", "tool_required")
_SCOPES: TypeAdapter[tuple[Scope, ...]] = TypeAdapter(tuple[Scope, ...])


def policy(input: dict[str, Any]) -> dict[str, Any]:
    """``policy.jsonl``: the decision, the rules that matched and the count of warnings."""
    layers = [PolicyLayer.model_validate(layer) for layer in input["layers"]]
    result = compile_policy(layers).evaluate(PolicyContext(**input["context"]))
    return {
        "decision": result.decision.value,
        "decisions": list(result.decisions),
        "warnings_count": result.warnings_count,
    }


def scopes(input: dict[str, Any]) -> dict[str, Any]:
    """``scopes.jsonl``: the literal intersection of the four layers."""
    result = scope_rules.intersect(*_scope_layers(input))
    return {
        "scopes": [scope.model_dump(exclude_none=True, mode="json") for scope in result.scopes],
        "denied": result.denied,
    }


def scope_allows(input: dict[str, Any], access: scope_rules.Access, path: str) -> bool:
    """A probe of ``scopes.jsonl``: whether every layer names the path."""
    return scope_rules.allows(_scope_layers(input), access, path)


def intents(input: dict[str, Any]) -> dict[str, Any]:
    """``intents.jsonl``: our pack layer, approvals not sticky, under the reference's default layers."""
    try:
        configured = intent_rules.parse_intents(input["config"].get("intents"))
    except ConfigurationError as problem:
        return {"config_error": True, "message": str(problem)}
    workspace = PolicyLayer(level="workspace", default_decision=Decision.ALLOW, allow_loosening=True)
    pack = intent_rules.intent_layer(configured, sticky_approvals=False)
    call = input["call"]
    result = compile_policy([workspace, pack]).evaluate(
        PolicyContext(
            trigger="on_tool_request",
            run_id="run-1",
            tool_name=call.get("tool_name", "").strip() or None,  # registered names have no blanks around
            execution_metadata=call.get("execution_metadata", {}),
        )
    )
    fired = {decision["policy_id"].partition(":")[0] for decision in result.decisions}
    return {
        "decision": result.decision.value,
        "matched_intent_rules": sorted(fired & {"intent-approval", "intent-deny"}),
    }


def canonical_json(input: dict[str, Any]) -> dict[str, Any]:
    """``canonical_json.jsonl``: canonical text and SHA-256 of what the JSON text says."""
    try:
        value = canonical.parse_json(input["json_text"])
        return {"canonical": canonical.canonical_json(value), "sha256": canonical.digest(value)}
    except InvalidInput as problem:
        return {"raises": True, "message": str(problem)}


def messages(input: dict[str, Any], group: str) -> dict[str, Any]:
    """``messages.jsonl``: the message helper that the group names."""
    if group == "create_host_context_messages":
        return {"messages": host_messages.create_host_context_messages(**input)}
    if group == "build_governed_tool_catalog":
        tools = [SimpleNamespace(capability=SimpleNamespace(**tool)) for tool in input["governed_tools"]]
        rest = {key: value for key, value in input.items() if key != "governed_tools"}
        return {"catalog": host_messages.build_governed_tool_catalog(governed_tools=tools, **rest)}
    message = getattr(host_messages, group)(**input)
    return {"message": message, "content_json": json.loads(message["content"])}


def turn_input(input: dict[str, Any]) -> dict[str, Any]:
    """``turn_input.jsonl``: see `tests.conformance.adapter_providers`."""
    from tests.conformance import adapter_providers

    return adapter_providers.turn_input(input)


def provider_normalise(input: dict[str, Any]) -> dict[str, Any]:
    """``provider_normalise.jsonl``: see `tests.conformance.adapter_providers`."""
    from tests.conformance import adapter_providers

    return adapter_providers.provider_normalise(input)


def workflow(input: dict[str, Any]) -> dict[str, Any]:
    """``workflow.jsonl``: see `tests.conformance.adapter_workflow`."""
    from tests.conformance import adapter_workflow

    return adapter_workflow.workflow(input)


def pipeline(input: dict[str, Any]) -> dict[str, Any]:
    """``pipeline.jsonl``: see `tests.conformance.adapter_pipeline`."""
    from tests.conformance import adapter_pipeline

    return adapter_pipeline.pipeline(input)


def _scope_layers(input: dict[str, Any]) -> list[tuple[Scope, ...]]:
    return [_SCOPES.validate_python(input[name]) for name in _LAYERS]
