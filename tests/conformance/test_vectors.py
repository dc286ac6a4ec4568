"""One test per conformance record, named by its id.

A record that is not flagged must match exactly, unless `expected_differences.toml` lists it. A
debatable one must satisfy the strict answers it carries (``strict_decision``, ``exact_allowed``,
``alternative``); where it differs from the reference, that is printed after the run. The variable
``CONFORMANCE_DIR`` names another directory of vectors.
"""

from __future__ import annotations

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import adapter
from tests.conformance.workflow_comparison import as_listed, comparable

HERE = Path(__file__).parent
VECTORS = Path(os.environ.get("CONFORMANCE_DIR", HERE / "vectors"))
EXPECTED_DIFFERENCES = {
    entry["id"]: entry["reason"]
    for entry in tomllib.loads((HERE / "expected_differences.toml").read_text("utf-8")).get("difference", [])
}


def records(name: str) -> list[Any]:
    """The records of one file as parameters."""
    path = VECTORS / f"{name}.jsonl"
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [pytest.param(record, id=record["id"]) for record in map(json.loads, lines)]


def judge(file: str, record: dict[str, Any], same: bool, actual: Any, differences: list[Any]) -> None:
    """Fail on a difference that nothing excuses; note an excused one, and a match."""
    listed = EXPECTED_DIFFERENCES.get(record["id"])
    if flagged(record) and not same:
        why = ", ".join(record.get("debatable_reasons", ["sequential_artifact"]))
        differences.append((file, record["id"], why))
    elif listed is not None and not flagged(record):
        assert not same, "the record matches: remove it from expected_differences.toml"
        differences.append((file, record["id"], f"on purpose: {listed}"))
    else:
        assert same, f"expected {record['expected']}\nactual   {actual}"
        differences.append((file, record["id"], ""))


def flagged(record: dict[str, Any]) -> bool:
    """Whether the record leaves the answer open."""
    return bool(record.get("debatable") or record.get("sequential_artifact"))


def agrees(expected: Any, actual: Any) -> bool:
    """Equality with JSON's types, ``$any_string`` and mentions."""
    if expected == "$any_string":
        return isinstance(actual, str) and actual != ""
    if isinstance(expected, dict):
        return isinstance(actual, dict) and object_agrees(expected, actual)
    if isinstance(expected, list):
        same_length = isinstance(actual, list) and len(expected) == len(actual)
        return same_length and all(map(agrees, expected, actual))
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    return bool(expected == actual)


def object_agrees(expected: dict[str, Any], actual: dict[str, Any]) -> bool:
    """The same keys with agreeing values; every mention found, beside whatever else is said."""
    wanted, rest = dict(expected), dict(actual)
    needle = wanted.pop("message_contains", None)
    if needle is not None and needle.casefold() not in rest.pop("message", "").casefold():
        return False
    if not set(wanted.pop("system_mentions", [])) <= set(rest.pop("system_mentions", [])):
        return False
    return wanted.keys() == rest.keys() and all(agrees(wanted[key], rest[key]) for key in wanted)


def listed_only(expected: dict[str, Any], actual: dict[str, Any]) -> dict[str, Any]:
    """What is answered under the keys that the record lists; the records of some files list a part."""
    return {key: value for key, value in actual.items() if key in expected or key == "message"}


@pytest.mark.parametrize("record", records("policy"))
def test_policy(record, differences):
    """Policy decides as the reference, and by the strict reading where the two part."""
    actual = adapter.policy(record["input"])
    if "strict_decision" in record:
        assert actual["decision"] == record["strict_decision"]
    judge("policy", record, agrees(record["expected"], actual), actual, differences)


@pytest.mark.parametrize("record", records("scopes"))
def test_scopes(record, differences):
    """The literal intersection is the reference's, and every probe gets the exact answer."""
    actual = adapter.scopes(record["input"])
    expected = record["expected"]
    same = actual["denied"] is expected["denied"] and as_set(actual["scopes"]) == as_set(expected["scopes"])
    judge("scopes", record, same, actual, differences)
    for probe in record.get("probes", []):
        allowed = adapter.scope_allows(record["input"], probe["access"], probe["path"])
        assert allowed is probe["exact_allowed"], probe


def as_set(scopes: list[dict[str, Any]]) -> set[str]:
    """Scopes without their order."""
    return {json.dumps(scope, sort_keys=True) for scope in scopes}


@pytest.mark.parametrize("record", records("intents"))
def test_intents(record, differences):
    """Intents open and gate tools as in the reference, and fail closed where it does not."""
    actual = adapter.intents(record["input"])
    judge("intents", record, agrees(record["expected"], actual), actual, differences)
    if "missing_intent_is_not_gated" in record.get("debatable_reasons", ()):
        assert actual["decision"] == ("allow" if turn_tool(record) else "deny")


def turn_tool(record: dict[str, Any]) -> bool:
    """Whether the record calls the turn tool."""
    return record["input"]["call"].get("tool_name", "").strip() == "agent:execute-turn"


@pytest.mark.parametrize("record", records("canonical_json"))
def test_canonical_json(record, differences):
    """Canonical text and hash are the reference's, or the answer of the RFC's key order."""
    actual = adapter.canonical_json(record["input"])
    if "alternative" in record:
        assert agrees(record["alternative"], listed_only(record["alternative"], actual))
    same = agrees(record["expected"], listed_only(record["expected"], actual))
    judge("canonical_json", record, same, actual, differences)


@pytest.mark.parametrize("record", records("messages"))
def test_messages(record, differences):
    """The message helpers write the reference's messages; of content only the parsed value counts."""
    actual = adapter.messages(record["input"], record["group"])
    expected = record["expected"]
    if "content_json" in expected:
        expected = {**expected, "message": {**expected["message"], "content": "$any_string"}}
    judge("messages", record, agrees(expected, actual), actual, differences)


@pytest.mark.parametrize("record", records("turn_input"))
def test_turn_input(record, differences):
    """Turn inputs are accepted and refused as in the reference, with no provider call on refusal."""
    actual = adapter.turn_input(record["input"])
    same = agrees(record["expected"], listed_only(record["expected"], actual))
    judge("turn_input", record, same, actual, differences)


@pytest.mark.parametrize("record", records("provider_normalise"))
def test_provider_normalise(record, differences):
    """Provider replies are normalised, refused and streamed as in the reference."""
    actual = adapter.provider_normalise(record["input"])
    same = agrees(record["expected"], listed_only(record["expected"], actual))
    judge("provider_normalise", record, same, actual, differences)


@pytest.mark.parametrize("record", records("workflow"))
def test_workflow(record, differences):
    """Workflows, sessions and loops come to the reference's results, states and calls, step by step."""
    actual = [comparable(step) for step in adapter.workflow(record["input"])["steps"]]
    expected = [comparable(step) for step in record["expected"]["steps"]]
    judge(
        "workflow",
        record,
        len(expected) == len(actual)
        and all(agrees(one, as_listed(one, other)) for one, other in zip(expected, actual, strict=True)),
        actual,
        differences,
    )


@pytest.mark.parametrize("record", records("pipeline"))
def test_pipeline(record, differences):
    """Calls, listings, start-ups and approvals come to the reference's results, with its traces in order."""
    actual, expected = adapter.pipeline(record["input"]), record["expected"]
    same = agrees(in_any_order(expected), in_any_order(words_listed(expected, actual)))
    judge("pipeline", record, same, actual, differences)


def words_listed(expected: Any, actual: Any) -> Any:
    """The answer without those words and details of errors that the record leaves open."""
    if isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        return list(map(words_listed, expected, actual))
    if not isinstance(expected, dict) or not isinstance(actual, dict):
        return actual
    open_keys = {"message", "details"} - expected.keys() if expected.keys() & {"code", "raises"} else set()
    if "message_contains" in expected:
        open_keys.discard("message")
    return {key: words_listed(expected.get(key), actual[key]) for key in actual.keys() - open_keys}


def in_any_order(answer: Any) -> Any:
    """The answer with the scopes of an intersection in one order: they are a set."""
    if isinstance(answer, list):
        return list(map(in_any_order, answer))
    if not isinstance(answer, dict):
        return answer
    sets = {key: answer[key] for key in ("scope_allowed", "scope_enforced") if key in answer}
    rest = {key: in_any_order(value) for key, value in answer.items()}
    return {**rest, **{key: sorted(as_set(value)) for key, value in sets.items()}}


def test_few_records_differ_on_purpose():
    """At most one in twenty of a file's records that are not flagged is listed as differing."""
    for path in sorted(VECTORS.glob("*.jsonl")):
        found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
        judged = [each["id"] for each in found if not flagged(each)]
        listed = [each for each in judged if each in EXPECTED_DIFFERENCES]
        assert len(listed) <= len(judged) / 20, (path.name, listed)


def test_every_listed_difference_names_its_reason():
    """An entry of expected_differences.toml says why it is there."""
    assert all(reason.strip() for reason in EXPECTED_DIFFERENCES.values())
