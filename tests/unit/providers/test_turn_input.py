"""The input of a turn: shape, size, limits, profile and address."""

import pytest
from pydantic import ValidationError

from runtime.core.profile import ModelProfile, parse_profile, resolve_profile
from runtime.core.turn import TurnLimits, check_limits, claimed_count, compact_json, validate_turn_input
from runtime.core.urls import host_and_port, join_endpoint, normalise_url
from runtime.errors import ConfigurationError, ErrorCode, InvalidInput, MissingEnvironment

MINIMAL = {
    "session_id": "s",
    "model_profile": "ops",
    "url": "http://h/",
    "messages": [{"role": "user", "content": "hi"}],
}
OPS = {
    "provider": "messages_compatible",
    "model": "m",
    "api_key_env": "K",
    "base_url": "https://Host.example",
}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"session_id": " \t"}, "session_id"),
        ({"stream": 1}, "stream"),
        ({"url": None}, "url"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": "x", "tool_name": " "}]}, "messages.tool_name"),
        ({"messages": [{"role": "user", "content": "x", "other": 1}]}, "other"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages.role"),
        (
            {"tool_catalog": [{"name": "a", "description": "d", "input_schema": []}]},
            "tool_catalog.input_schema",
        ),
        ({"tool_catalog": [{"name": "a"}]}, "tool_catalog.description"),
        ({"intent_catalog": [{"id": "", "description": "d"}]}, "intent_catalog.id"),
        ({"limits": {"max_turns": 1}}, "max_turns"),
        ({"surprise": None}, "surprise"),
    ],
)
def test_a_wrong_field_is_refused_by_name(change, names):
    with pytest.raises(InvalidInput, match=names):
        validate_turn_input(MINIMAL | change)


def test_url_may_be_left_out_unless_it_is_required():
    without = {name: value for name, value in MINIMAL.items() if name != "url"}
    assert validate_turn_input(without).url is None
    with pytest.raises(InvalidInput, match="url"):
        validate_turn_input(without, require_url=True)


def test_an_absent_catalogue_differs_from_an_empty_one():
    assert validate_turn_input(MINIMAL).tool_catalog is None
    assert validate_turn_input(MINIMAL | {"tool_catalog": []}).tool_catalog == ()


def test_a_schema_with_a_number_that_is_not_finite_is_refused():
    tool = {"name": "a", "description": "d", "input_schema": {"maximum": float("nan")}}
    with pytest.raises(InvalidInput, match="finite"):
        validate_turn_input(MINIMAL | {"tool_catalog": [tool]})


def test_nul_and_lone_surrogates_are_content_and_count_as_their_escapes():
    turn = validate_turn_input(MINIMAL | {"messages": [{"role": "user", "content": "\0\ud800"}]})
    assert turn.messages[0].content == "\0\ud800"
    assert compact_json("\0\ud800") == b'"\\u0000\\ud800"'
    assert turn.size_bytes() == validate_turn_input(MINIMAL).size_bytes() - 2 + 12


def test_limits_are_checked_bytes_first_then_turns_then_calls():
    limits = TurnLimits(max_turns_per_session=1, max_tool_calls_per_session=1, max_input_bytes=1)

    def exceeded(**counts):
        failure = check_limits(limits, **{"input_bytes": 1, "turn_index": 0, "tool_call_count": 0} | counts)
        return failure and (failure.code, failure.details["limit"])

    code = ErrorCode.LIMIT_EXCEEDED
    assert exceeded() is None
    assert exceeded(input_bytes=2, turn_index=1, tool_call_count=1) == (code, "max_input_bytes")
    assert exceeded(turn_index=1, tool_call_count=1) == (code, "max_turns_per_session")
    assert exceeded(tool_call_count=1) == (code, "max_tool_calls_per_session")


@pytest.mark.parametrize("value", [True, -1, 2.5, "3", None])
def test_a_claimed_counter_that_is_no_count_is_ignored(value):
    assert claimed_count({"agent_turn_index": value}, "agent_turn_index") is None


def test_the_key_of_a_resolved_profile_never_prints():
    resolved = resolve_profile({"ops": OPS}, "ops", {"K": "secret-key"})
    assert "secret-key" not in repr(resolved) + str(resolved)
    assert resolved.api_key.get_secret_value() == "secret-key"


def test_the_key_is_missed_before_the_url():
    with pytest.raises(MissingEnvironment, match="AGENT_RUNTIME_API_KEY"):
        resolve_profile({}, "m", {})
    with pytest.raises(MissingEnvironment, match="AGENT_RUNTIME_BASE_URL"):
        resolve_profile({}, "m", {"AGENT_RUNTIME_API_KEY": "k"})


def test_with_models_an_unknown_profile_is_refused_although_the_default_environment_is_set():
    env = {"AGENT_RUNTIME_API_KEY": "k", "AGENT_RUNTIME_BASE_URL": "https://h/", "K": "k"}
    with pytest.raises(InvalidInput, match="nope"):
        resolve_profile({"ops": OPS}, "nope", env)
    assert resolve_profile({}, "nope", env).profile.model == "nope"


@pytest.mark.parametrize(
    "address", ["ftp://h/", "https://user:secret@h/", "nonsense", "http://a b/", "http://h:99999/"]
)
def test_an_address_that_cannot_be_called_is_refused_without_repeating_it(address):
    with pytest.raises(ConfigurationError) as refused:
        resolve_profile({"ops": OPS | {"base_url": address}}, "ops", {"K": "k"})
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("key", ["k\u00e9y", "a\nb", "a\x00b"])
def test_a_key_that_no_header_may_carry_is_refused_without_repeating_it(key):
    with pytest.raises(ConfigurationError, match="K holds characters") as refused:
        resolve_profile({"ops": OPS}, "ops", {"K": key})
    assert key not in str(refused.value)


def test_a_key_among_the_headers_is_refused_without_repeating_it():
    with pytest.raises(ConfigurationError, match="headers") as refused:
        parse_profile("ops", OPS | {"headers": {"Authorization": "Bearer secret"}})
    assert "secret" not in str(refused.value)
    with pytest.raises(ValidationError, match="printable"):
        ModelProfile.model_validate(OPS | {"headers": {"x": "a\r\nb"}})


@pytest.mark.parametrize(
    ("given", "equal"),
    [
        ("HTTPS://HOST.example:443/a/../", True),
        ("https://host.example:444/", False),
        ("http://host.example", False),
    ],
)
def test_urls_are_compared_by_the_whatwg_rules(given, equal):
    def resolve():
        return resolve_profile({"ops": OPS}, "ops", {"K": "k"}, url=given)

    if equal:
        assert resolve().request_url == given
        assert resolve().network_allowlist == ("host.example:443",)
    else:
        with pytest.raises(InvalidInput, match="url"):
            resolve()


@pytest.mark.parametrize(
    ("base", "path", "joined"),
    [
        ("https://h", "/v1/messages", "https://h/v1/messages"),
        ("https://h/v1/", "/v1/messages", "https://h/v1/messages"),
        ("https://h/v1/messages", "/v1/messages", "https://h/v1/messages"),
        ("https://h/v1", "/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/v1/chat/completions/", "/chat/completions", "https://h/v1/chat/completions"),
        ("https://h/x?version=1#part", "/chat/completions", "https://h/x/chat/completions?version=1"),
    ],
)
def test_an_endpoint_is_joined_once(base, path, joined):
    assert join_endpoint(base, path) == joined


def test_hosts_are_listed_with_their_port():
    assert host_and_port(normalise_url("http://[::1]:4010/v1", source="x")) == "[::1]:4010"
    assert host_and_port(normalise_url("http://h", source="x")) == "h:80"
