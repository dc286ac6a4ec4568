"""Roots are those of RFC 6962, and an audit path leads to the root from its own entry and place alone."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.merkle import EMPTY_ROOT, Tree, leaf_hash, root_from_path


def rfc_root(entries):
    """MTH as section 2.1 of RFC 6962 writes it."""
    if not entries:
        return hashlib.sha256(b"").digest()
    if len(entries) == 1:
        return hashlib.sha256(b"\0" + entries[0]).digest()
    k = 1
    while k * 2 < len(entries):
        k *= 2
    return hashlib.sha256(b"\1" + rfc_root(entries[:k]) + rfc_root(entries[k:])).digest()


def rfc_path(m, entries):
    """PATH as section 2.1.1 of RFC 6962 writes it."""
    if len(entries) <= 1:
        return []
    k = 1
    while k * 2 < len(entries):
        k *= 2
    if m < k:
        return [*rfc_path(m, entries[:k]), rfc_root(entries[k:])]
    return [*rfc_path(m - k, entries[k:]), rfc_root(entries[:k])]


def entries_of(size):
    return [str(number).encode() for number in range(size)]


# Roots over the inputs of the reference implementation of Certificate Transparency (merkle tree tests).
INPUTS = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243")]
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
]


@pytest.mark.parametrize("size", range(1, 7))
def test_roots_are_those_of_certificate_transparencys_own_tests(size):
    assert Tree([leaf_hash(entry) for entry in INPUTS[:size]]).root.hex() == ROOTS[size - 1]


@pytest.mark.parametrize("size", [*range(20), 33, 64, 65])
def test_root_and_paths_are_as_the_rfc_defines_them(size):
    entries = entries_of(size)
    tree = Tree([leaf_hash(entry) for entry in entries])
    assert tree.root == rfc_root(entries)
    for index in range(size):
        assert tree.path(index) == rfc_path(index, entries)


def test_no_entries_have_the_root_of_nothing():
    assert Tree([]).root == EMPTY_ROOT


@given(st.integers(1, 70), st.data())
def test_a_path_leads_to_the_root_from_its_own_entry_and_place_alone(size, data):
    leaves = [leaf_hash(entry) for entry in entries_of(size)]
    tree = Tree(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = tree.path(index)
    assert root_from_path(leaves[index], index, size, path) == tree.root
    other = data.draw(st.integers(-1, size + 1).filter(lambda k: k != index))
    assert root_from_path(leaves[index], other, size, path) != tree.root
    assert root_from_path(leaf_hash(b"another"), index, size, path) != tree.root
    if path:
        assert root_from_path(leaves[index], index, size, path[:-1]) != tree.root
    assert root_from_path(leaves[index], index, size, [*path, leaves[index]]) != tree.root
