"""Scopes of a configuration that could never allow anything are errors with value and fix."""

from __future__ import annotations

import pytest

from runtime.core.model import NetworkScope, PathScope
from runtime.core.scope_check import bad_scopes
from runtime.errors import ConfigurationError
from runtime.workspace import load_workspace


def path(pattern):
    return PathScope(pattern=pattern, access="read")


def net(*entries):
    return NetworkScope(posture="allowlist", allowlist_entries=entries)


def test_well_formed_scopes_are_no_problem():
    scopes = (path("src/**"), path("{a,b}/[a-z]?.md"), net("a.example:443", "10.0.0.0/8:1-1024", "[::1]:80"))
    assert list(bad_scopes(scopes, [scopes, None])) == []


@pytest.mark.parametrize(
    ("pattern", "fix"),
    [
        ("/etc/**", "relative to the workspace root"),
        ("src/../etc", "name the directory itself"),
        ("{..,a}/x", "name the directory itself"),
        ("{/etc,a}/x", "relative to the workspace root"),
        ("!src/**", "list what is allowed instead"),
        ("@(a|b)/x", "list what is allowed instead"),
        ("src\\a", "separate segments with '/'"),
        ("{a,b", "write several scopes"),
        ("{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}", "write several scopes"),
        ("{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}" + "x" * 500, "write several scopes"),
        ("src/[z-a]", "write it as [a-z]"),
        ("a" * 9000, "write at most 8192"),
    ],
)
def test_a_malformed_pattern_is_named_with_its_fix(pattern, fix):
    ((keys, text),) = bad_scopes([path("ok"), path(pattern)], [])
    assert keys == ("security", "allowed_scopes", 1, "pattern")
    assert repr(pattern)[:40] in text
    assert fix in text


@pytest.mark.parametrize(
    ("entry", "fix"),
    [
        ("a.example:99999", "between 1 and 65535"),
        ("a.example:0", "between 1 and 65535"),
        ("a.example:9-1", "between 1 and 65535"),
        ("10.0.0.7/24:443", "its first address"),
        ("bücher.example:443", "xn-- form"),
        ("https://a.example", "write it like api.example.com:443"),
        ("api-*.example.com:443", "write it like api.example.com:443"),
        ("010.0.0.1:443", "write it like api.example.com:443"),
    ],
)
def test_a_malformed_entry_of_a_lane_is_named_with_its_fix(entry, fix):
    ((keys, text),) = bad_scopes([], [None, [net("ok.example:1", entry)]])
    assert keys == ("lanes", 1, "allowed_scopes", 0, "allowlist_entries", 1)
    assert repr(entry) in text
    assert fix in text


def test_a_workspace_file_with_malformed_scopes_does_not_load(tmp_path):
    """Every one of them is reported, with its line."""
    file = tmp_path / "workspace.yaml"
    file.write_text(
        "security:\n"
        "  allowed_scopes:\n"
        "    - {type: path, pattern: '/etc/**', access: read}\n"
        "lanes:\n"
        "  - id: night\n"
        "    allowed_scopes:\n"
        "      - {type: network, posture: allowlist, allowlist_entries: ['a.example:99999']}\n"
    )
    with pytest.raises(ConfigurationError) as caught:
        load_workspace(file)
    first, second = caught.value.details["problems"]
    assert ":3" in first
    assert "'/etc/**' is absolute — write it relative" in first
    assert ":7" in second
    assert "'a.example:99999' names no port between 1 and 65535 — write one" in second
