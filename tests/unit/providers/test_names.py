"""Rule 1: tool names on the wire are legal, reversible and free of collisions."""

import re

from hypothesis import given
from hypothesis import strategies as st

from runtime.providers.names import ToolNames


@given(
    st.sets(
        st.text(st.characters(exclude_categories=[])) | st.from_regex(r"[ab:_]{1,3}", fullmatch=True),
        max_size=20,
    )
)
def test_rule_1_every_name_maps_to_a_legal_one_and_back(names):
    table = ToolNames(names)
    wire = {name: table.to_wire(name) for name in names}
    assert len(set(wire.values())) == len(names)
    assert all(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", value) for value in wire.values())
    assert all(table.from_wire(value) == name for name, value in wire.items())


def test_rule_1_a_legal_name_stands_for_itself_although_another_one_looks_like_it():
    table = ToolNames(["a:b", "a_b"])
    assert table.to_wire("a_b") == "a_b"
    assert table.from_wire(table.to_wire("a:b")) == "a:b"


def test_a_name_that_was_not_offered_is_returned_as_it_is():
    assert ToolNames(["a:b"]).from_wire("rm_rf") == "rm_rf"
