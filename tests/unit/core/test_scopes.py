"""Scopes: automata agree with brute force, layers only narrow, the state directory stays out of reach."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import globs, network
from runtime.core.model import NetworkScope, PathScope
from runtime.core.scope_grant import grant_scopes
from runtime.core.scopes import allows, allows_address, intersect

NAMES = ("a", "b", "ab", ".a", "a.b")
PATHS = tuple("/".join(parts) for depth in range(4) for parts in product(NAMES, repeat=depth))
segments = st.sampled_from(["a", "b", "*", "**", "a*", "*b", "?", "[ab]", "{a,b}", ".a", "*.b", "a.b"])
patterns = st.lists(segments, min_size=1, max_size=3).map("/".join)


def read(*patterns):
    return tuple(PathScope(pattern=pattern, access="read") for pattern in patterns)


def write(*patterns):
    return tuple(PathScope(pattern=pattern, access="write") for pattern in patterns)


def net(*entries):
    return (NetworkScope(posture="allowlist", allowlist_entries=entries),)


FULL, OFF = (NetworkScope(posture="full"),), (NetworkScope(posture="off"),)


@settings(max_examples=80, deadline=None)
@given(pattern=patterns, others=st.lists(patterns, min_size=1, max_size=2).map(tuple))
def test_containment_agrees_with_enumeration(pattern, others):
    named = [path for path in PATHS if globs.matches((pattern,), path)]
    escaped = [path for path in named if not globs.matches(others, path)]
    if globs.contained(pattern, others):
        assert named
        assert escaped == []
    elif len(others) == 1 and "?" not in pattern and "*" not in pattern and "[" not in pattern:
        assert escaped or not named


@settings(max_examples=40, deadline=None)
@given(layers=st.lists(st.lists(patterns, min_size=1, max_size=2), min_size=4, max_size=4))
def test_an_intersection_names_only_what_every_layer_names(layers):
    scopes = [read(*layer) for layer in layers]
    for scope in intersect(*scopes).scopes:
        for path in PATHS:
            if globs.matches((scope.pattern,), path):
                assert allows(scopes, "read", path), (scope, path)


@pytest.mark.parametrize(
    ("pattern", "path", "named"),
    [
        ("src/**", "src", True),
        ("src/**/a.ts", "src/a.ts", True),
        ("**", "", True),
        ("*", "", False),
        ("src/*", "src/a/b", False),
        ("*.ts", "a.ts", True),
        ("*.ts", ".ts", False),
        ("**", "src/.env", False),
        ("src/.env", "src/.env", True),
        ("src/?.ts", "src/a.ts", True),
        ("src/[!a].ts", "src/a.ts", False),
        ("{src,docs/api}/**", "docs/api/x", True),
        ("SRC/**", "src/a", False),
        ("./src//**/", "src/a", True),
        ("src/**", "./src//a/", True),
        ("src/**", "src/../etc/passwd", False),
        ("**", "/etc/passwd", False),
        ("**", "a\\b", False),
        ("!src/**", "docs/a", False),
        ("src/../docs", "docs", False),
    ],
)
def test_a_pattern_names_a_path(pattern, path, named):
    assert globs.matches((pattern,), path) is named


@pytest.mark.parametrize(
    ("pattern", "others", "inside"),
    [
        ("src/*.ts", ("src/**",), True),
        ("src/**", ("src/*", "src/*/**"), False),
        ("src/**", ("src", "src/*/**"), True),
        ("{a,b}/x", ("a/**", "b/**"), True),
        ("a/*/**", ("a/**",), True),
        ("a/**", ("a/*/**",), False),
        ("src/[ab].ts", ("src/?.ts",), True),
        ("**", ("**/*",), False),
        ("a/..", ("**",), False),
        ("!a", ("**", "!a"), False),
        ("[b-a]", ("**",), False),
        ("src", (), False),
    ],
)
def test_containment_is_exact_and_refuses_the_malformed(pattern, others, inside):
    assert globs.contained(pattern, others) is inside


@pytest.mark.parametrize(
    ("pattern", "others", "inside"),
    [
        ("{x/[b-a],src}", ("src",), True),
        (".?", (".[!.]",), True),
        (".?/**/a", (".[!.]/**/a",), True),
        (".?*", ("..?*", ".[!.]*"), False),
        ("?", ("[!\U0010ffff]", "\U0010ffff"), True),
        ("**/*a*/**/*b*", ("**/*b*",), True),
        (
            "{" + ",".join(f"d{at}/[ab]*" for at in range(200)) + "}",
            tuple(f"d{at}/*" for at in range(200)),
            True,
        ),
        (
            "{" + ",".join(f"d{at}/[ab]*" for at in range(200)) + "}",
            tuple(f"d{at}/*" for at in range(199)),
            False,
        ),
        ("*[ab]" + "?" * 12, ("*a" + "?" * 12, "*b" + "?" * 12), True),
        ("*[abc]" + "?" * 12, ("*a" + "?" * 12, "*b" + "?" * 12), False),
        ("/".join("*a?" for _ in range(12)), ("/".join("*?" for _ in range(12)),), True),
        ("**/" + "/".join("*" for _ in range(20)), ("**/" + "/".join("*" for _ in range(19)),), True),
    ],
)
def test_containment_is_exact_where_automata_grow(pattern, others, inside):
    assert globs.contained(pattern, others) is inside


@pytest.mark.parametrize(
    "spelling",
    [
        ".agent-runtime",
        ".agent-runtime/",
        "./.agent-runtime/x",
        "//.agent-runtime",
        ".Agent-Runtime/x",
        "a/../.agent-runtime",
        "../w/.agent-runtime/x",
        ".agent-runtime./x",
        ".agent-runtime /x",
        "a\\..\\.agent-runtime",
    ],
)
def test_the_state_directory_is_never_writable(spelling):
    scopes = write("**", spelling)
    assert not allows([scopes], "write", spelling)
    grant = grant_scopes(scopes, None, None, write(spelling))
    assert grant.denied
    assert grant.reserved == write(spelling)


@pytest.mark.parametrize(
    "pattern", ["**/.agent-runtime", "{.agent-runtime,x}/**", ".agent-[r]untime", ".agent*/x"]
)
def test_a_pattern_that_reaches_the_state_directory_is_reserved(pattern):
    assert grant_scopes(write(pattern), None, None, write(pattern)).reserved == write(pattern)


@pytest.mark.parametrize("pattern", [".agent-runtimex/**", "x/.agent-runtime-old", "agent-runtime/**", "**"])
def test_a_neighbour_of_the_state_directory_is_not_reserved(pattern):
    assert not grant_scopes(write(pattern), None, None, write(pattern)).denied


def test_the_state_directory_may_be_read_where_it_is_named():
    assert allows([read(".agent-runtime/**")], "read", ".agent-runtime/x")


def test_to_write_does_not_imply_to_read():
    assert not allows([write("**")], "read", "a")


def test_a_tool_that_requires_nothing_needs_nothing():
    assert not grant_scopes((), (), (), ()).denied


def test_an_absent_layer_narrows_nothing_and_an_empty_one_allows_nothing():
    assert grant_scopes(read("**"), None, None, read("a")).granted == read("a")
    assert grant_scopes(read("**"), (), None, read("a")).missing[0].layer == "lane"
    assert grant_scopes(read("**"), None, (), read("a")).missing[0].layer == "task"


def test_a_tool_needs_all_of_what_it_requires():
    required = (*read("src/**"), *net("api.example.com:443", "db.internal:5432"))
    grant = grant_scopes((*read("src/**"), *net("api.example.com:443")), None, None, required)
    assert grant.denied
    assert [missing.scope for missing in grant.missing] == list(net("db.internal:5432"))


def test_mode_any_takes_what_is_left():
    required = (*read("src/**"), *net("api.example.com:443"))
    grant = grant_scopes(read("src/a/**"), None, None, required, mode="any")
    assert grant.granted == read("src/a/**")
    assert grant_scopes(read("docs/**"), None, None, required, mode="any").denied


def test_a_union_of_scopes_may_cover_what_is_required():
    assert not grant_scopes(read("src", "src/*/**"), None, None, read("src/**")).denied


@pytest.mark.parametrize("required", [read("../x"), read("!x"), net("no host")])
@pytest.mark.parametrize("mode", ["all", "any"])
def test_a_malformed_requirement_is_never_granted(required, mode):
    grant = grant_scopes((*required, *read("**"), *FULL), None, None, required, mode=mode)
    assert grant.denied
    assert grant.missing[0].layer is None


@pytest.mark.parametrize(
    ("entry", "by", "inside"),
    [
        ("api.example.com:443", "API.Example.com:443", True),
        ("api.example.com:443", "*.example.com:443", True),
        ("a.b.example.com:443", "*.example.com:443", False),
        ("example.com:443", "*.example.com:443", False),
        ("*.example.com:443", "*.*.com:443", True),
        ("*.example.com:443", "api.example.com:443", False),
        ("api.example.com:443", "api.example.com", True),
        ("api.example.com", "api.example.com:443", False),
        ("api.example.com:443", "api.example.com:80", False),
        ("10.0.0.7:5432", "10.0.0.0/24", True),
        ("10.0.0.0/25", "10.0.0.0/24", True),
        ("10.0.0.0/16", "10.0.0.0/24", False),
        ("10.0.1.7", "10.0.0.0/24", False),
        ("010.0.0.7", "10.0.0.0/24", False),
        ("10.0.0.1", "*.*.*.*", False),
        ("[::1]:80", "::/64", True),
        ("host.internal:80", "10.0.0.0/8", False),
        ("https://a.example:443", "a.example:443", False),
        ("", "", False),
    ],
)
def test_an_entry_covers_another(entry, by, inside):
    assert network.covered(entry, (by,)) is inside


@pytest.mark.parametrize(
    ("entry", "by", "inside"),
    [
        ("10.0.0.0/24", ("10.0.0.0/25", "10.0.0.128/25"), True),
        ("10.0.0.0/24", ("10.0.0.0/25", "10.0.0.129/32", "10.0.0.128/26"), False),
        ("10.0.0.0/24:443", ("10.0.0.0/25:443", "10.0.0.128/25"), True),
        ("10.0.0.0/24", ("10.0.0.0/25:443", "10.0.0.128/25"), False),
        ("a.example", ("a.example:1-1023", "a.example:1024-65535"), True),
        ("a.example:*", ("a.example:1-1023", "*.example:1025-65535"), False),
        ("a.example:80-90", ("a.example:1-85", "*.example:86-100"), True),
        ("*.example:80", ("a.example:80", "b.example:80"), False),
        ("::/0", ("::/1", "8000::/1"), True),
        ("[::ffff:10.0.0.7]:443", ("10.0.0.0/24:443",), True),
        ("10.0.0.7:443", ("[::ffff:a00:0/120]:443",), True),
        ("10.0.0.7", ("::/0",), False),
        ("0.0.0.0/0", ("[::ffff:0:0/96]",), True),
        ("a.example:99999", ("a.example",), False),
        ("a.example:0", ("a.example",), False),
        ("a.example:443", ("a.example:99999", "a.example:400-99999"), False),
        ("A.Example.:443", ("a.EXAMPLE:443",), True),
    ],
)
def test_entries_cover_another_together(entry, by, inside):
    assert network.covered(entry, by) is inside


def test_a_network_requirement_is_met_by_every_layer_or_not_at_all():
    assert not grant_scopes(FULL, net("*.example.com:443"), None, net("api.example.com:443")).denied
    assert grant_scopes(net("api.example.com:443"), None, None, FULL).denied
    assert grant_scopes(OFF, None, None, net("api.example.com:443")).denied
    assert not grant_scopes((), None, None, OFF).denied


def test_an_allowlist_restricts_a_full_posture_beside_it():
    assert grant_scopes((*FULL, *net("a.example:1")), None, None, net("b.example:1")).denied


def test_an_address_is_checked_against_every_layer():
    layers = [FULL, net("10.0.0.0/24:443", "*.example.com")]
    assert allows_address(layers, "10.0.0.9", 443)
    assert allows_address(layers, "api.example.com", 80)
    assert not allows_address(layers, "10.0.0.9", 80)
    assert not allows_address(layers, "*.example.com", 80)
    assert not allows_address([*layers, OFF], "10.0.0.9", 443)
