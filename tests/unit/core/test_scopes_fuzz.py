"""Scopes against brute force: another matcher, and every path or address of a small world.

The worlds hold a character, a label and a port that no pattern mentions, and are a little larger than what
the patterns can tell apart, so that whatever escapes a scope does so within them.
"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import ip_address, ip_network
from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.core import globs, network
from runtime.core.model import NetworkScope, PathScope
from runtime.core.scope_grant import grant_scopes
from runtime.core.scopes import allows, allows_address, intersect

thorough = settings(max_examples=400, deadline=None, derandomize=True)


# --- another matcher ------------------------------------------------------------------------------


def alternatives(pattern: str) -> list[str]:
    found = re.search(r"\{([^{}]*)\}", pattern)
    if found is None:
        return [pattern]
    return [
        text
        for part in found[1].split(",")
        for text in alternatives(pattern[: found.start()] + part + pattern[found.end() :])
    ]


@cache
def expression(pattern: str) -> re.Pattern[str]:
    """One regular expression for a pattern, for paths that end each segment with a slash."""
    atoms = {"*": "[^/]+", "?": "[^/]", "[ab]": "[ab]", "[!a]": "[^/a]"}
    texts = []
    for text in alternatives(pattern):
        written = ""
        for segment in text.split("/"):
            if segment == ".":
                continue
            if segment == "**":
                written += r"(?:(?!\.)[^/]+/)*"
                continue
            parts = re.findall(r"\*+|\[[^]]*\]|.", segment)
            undotted = r"(?!\.)" if parts[0][0] in "*?[" else ""
            written += undotted + "".join(atoms.get(part[:1] if part[0] == "*" else part, re.escape(part))
                                          for part in parts) + "/"  # fmt: skip
        texts.append(written)
    return re.compile("|".join(f"(?:{text})" for text in texts), re.DOTALL)


@cache
def named(pattern: str, world: tuple[str, ...]) -> frozenset[str]:
    matcher = expression(pattern)
    return frozenset(path for path in world if matcher.fullmatch(path and path + "/"))


def union(patterns, world) -> frozenset[str]:
    return frozenset().union(*(named(pattern, world) for pattern in patterns))


# --- two small worlds -----------------------------------------------------------------------------

NAMES = tuple(
    name
    for length in range(1, 6)
    for name in map("".join, product("abc.", repeat=length))
    if name not in (".", "..")
)
atoms = st.sampled_from(["a", "b", ".", "?", "*", "[ab]", "[!a]", "{a,b}", "{a,b?}"])
names = st.lists(atoms, min_size=1, max_size=3).map("".join).filter(
    lambda name: not {".", "..", "**", "***"} & set(alternatives(name))
)  # fmt: skip

LABELS = ("a", "b", "c", "cc", ".a")
PATHS = tuple("/".join(path) for depth in range(5) for path in product(LABELS, repeat=depth))
segments = st.sampled_from(["a", "b", "*", "**", "?", "{a,b}", ".a", "[!a]", "."])
patterns = st.lists(segments, min_size=1, max_size=3).map("/".join)


@thorough
@given(pattern=names)
def test_a_name_is_matched_as_another_matcher_does(pattern):
    assert {name for name in NAMES if globs.matches((pattern,), name)} == named(pattern, NAMES)


@thorough
@given(pattern=patterns)
def test_a_path_is_matched_as_another_matcher_does(pattern):
    assert {path for path in PATHS if globs.matches((pattern,), path)} == named(pattern, PATHS)


@thorough
@given(pattern=names, others=st.lists(names, min_size=1, max_size=3))
def test_a_name_pattern_is_contained_exactly_if_no_name_escapes(pattern, others):
    inside = bool(named(pattern, NAMES)) and named(pattern, NAMES) <= union(others, NAMES)
    assert globs.contained(pattern, tuple(others)) is inside


@thorough
@given(pattern=patterns, others=st.lists(patterns, min_size=1, max_size=4))
def test_a_path_pattern_is_contained_exactly_if_no_path_escapes(pattern, others):
    inside = bool(named(pattern, PATHS)) and named(pattern, PATHS) <= union(others, PATHS)
    assert globs.contained(pattern, tuple(others)) is inside


def read(patterns):
    return tuple(PathScope(pattern=pattern, access="read") for pattern in patterns)


layers = st.lists(st.lists(patterns, min_size=1, max_size=3), min_size=4, max_size=4)


@thorough
@given(layers=layers, path=st.sampled_from(PATHS))
def test_a_path_is_allowed_exactly_if_every_layer_names_it(layers, path):
    expected = all(path in union(layer, PATHS) for layer in layers)
    assert allows([read(layer) for layer in layers], "read", path) is expected


@thorough
@given(layers=layers)
def test_an_intersection_keeps_exactly_what_lies_within_one_pattern_of_each_layer(layers):
    expected = {
        pattern
        for pattern in {pattern for layer in layers for pattern in layer}
        if all(any(named(pattern, PATHS) <= named(other, PATHS) for other in layer) for layer in layers)
    }
    assert {scope.pattern for scope in intersect(*map(read, layers)).scopes} == expected


@thorough
@given(layers=layers)
def test_a_call_is_granted_exactly_what_every_layer_names_all_of(layers):
    *narrowing, required = layers
    inside = [
        pattern
        for pattern in required
        if all(named(pattern, PATHS) <= union(layer, PATHS) for layer in narrowing)
    ]
    grant = grant_scopes(*map(read, layers))
    assert grant.denied is (inside != required)
    assert {missing.scope.pattern for missing in grant.missing} == set(required) - set(inside)


# --- networks -------------------------------------------------------------------------------------

HOST_NAMES = tuple(".".join(labels) for depth in (1, 2, 3) for labels in product("abx", repeat=depth))
ADDRESSES = (*(f"10.0.0.{last}" for last in range(17)), "::1", "fe80::1", "::ffff:10.0.1.0")
PORTS = (1, 2, 3, 4, 65534, 65535)
blocks = st.builds(
    lambda bits, last: str(ip_network(f"10.0.0.{last}/{bits}", strict=False)),
    st.integers(27, 32),
    st.integers(0, 15),
)
mapped = blocks.map(lambda block: "[::ffff:{}/{}]".format(block.split("/")[0], 96 + int(block.split("/")[1])))
hosts = st.one_of(
    st.lists(st.sampled_from(["a", "b", "*"]), min_size=1, max_size=3).map(".".join),
    blocks,
    mapped,
    st.sampled_from(["A.B", "b.a.", "[::/0]", "[fe80::/10]", "0.0.0.0/0", "[::fffe:0:0/95]"]),
)
ports = st.sampled_from(["", ":*", ":1", ":2", ":3", ":1-2", ":2-3", ":3-65535", ":1-65535", ":65535"])
entries = st.builds(lambda host, port: host + port, hosts, ports)


@cache
def reached(entry: str) -> frozenset[tuple[str, int]]:
    host, _, port = entry.partition("]") if entry.startswith("[") else ("", "", entry)
    host, port = (host[1:], port[1:]) if host else [*port.split(":"), ""][:2]
    first, _, last = port.partition("-") if port not in ("", "*") else ("1", "", "65535")
    return frozenset(
        (one, number)
        for number in PORTS
        if int(first) <= number <= int(last or first)
        for one in _hosts(host)
    )


@cache
def _hosts(host: str) -> frozenset[str]:
    if "/" not in host:
        labels = host.lower().removesuffix(".").split(".")
        return frozenset(
            name
            for name in HOST_NAMES
            if len(name.split(".")) == len(labels)
            and all(mine in ("*", other) for mine, other in zip(labels, name.split("."), strict=True))
        )
    block = ip_network(host)
    if block.version == 6 and block.network_address.ipv4_mapped and block.prefixlen >= 96:
        block = ip_network(f"{block.network_address.ipv4_mapped}/{block.prefixlen - 96}")
    plain = {one: getattr(ip_address(one), "ipv4_mapped", None) or ip_address(one) for one in ADDRESSES}
    return frozenset(one for one, address in plain.items() if address in block)


@thorough
@given(entry=entries, by=st.lists(entries, min_size=1, max_size=5))
def test_an_entry_is_covered_exactly_if_no_address_escapes(entry, by):
    # The world of addresses ends early, so what lies beyond it is left to the widest blocks.
    wide = "/0" in entry or "/10" in entry or "/95" in entry or "/27" in entry
    escaped = reached(entry) - frozenset().union(*map(reached, by))
    covered = network.covered(entry, by)
    if escaped or not wide:
        assert covered is not bool(escaped)


@thorough
@given(by=st.lists(st.lists(entries, min_size=1, max_size=3), min_size=1, max_size=3))
def test_an_address_is_allowed_exactly_if_every_layer_reaches_it(by):
    layers = [(NetworkScope(posture="allowlist", allowlist_entries=tuple(each)),) for each in by]
    for host in (*HOST_NAMES, *ADDRESSES):
        for port in PORTS:
            expected = all(any((host, port) in reached(entry) for entry in each) for each in by)
            assert allows_address(layers, host, port) is expected, (host, port)
