"""Graphs that could never run are refused, by name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.graph import find_cycle, validate_graph, wake_time
from runtime.core.model import WorkflowNode
from runtime.errors import InvalidInput


def node(name, *depends, **values):
    return WorkflowNode(id=name, execute_turn_input={}, depends_on=depends, **values)


@pytest.mark.parametrize(
    ("nodes", "says"),
    [
        ([], "empty"),
        ([node("a"), node("a")], "'a' is used twice"),
        ([node("host:r:t")], "'host:r:t'"),
        ([node("a", "ghost")], "'ghost'"),
        ([node("a", "a")], "a -> a"),
        ([node("a", "c"), node("b", "a"), node("c", "b")], "cycle"),
        ([node("a"), node("b", "a", "a")], "twice"),
        ([node("a"), node("b", context_from=("ghost",))], "'ghost'"),
        ([node("a", wake_at="tomorrow")], "RFC 3339"),
        ([node("a", wake_at="2026-03-13T09:00:00")], "zone"),
    ],
)
def test_a_graph_that_could_never_run_is_refused(nodes, says):
    with pytest.raises(InvalidInput, match=says):
        validate_graph(nodes)


def test_a_cycle_is_named_from_end_to_end():
    found = find_cycle([node("ok"), node("a", "b"), node("b", "c"), node("c", "a")])
    assert found is not None
    assert found[0] == found[-1]
    assert set(found) == {"a", "b", "c"}


@given(st.integers(1, 12), st.data())
def test_edges_that_all_point_backwards_have_no_cycle(size, data):
    nodes = [
        node(
            str(n),
            *data.draw(st.lists(st.sampled_from([str(m) for m in range(n)]), unique=True)) if n else (),
        )
        for n in range(size)
    ]
    validate_graph(nodes)
    assert find_cycle(nodes) is None


def test_a_deep_chain_is_walked_without_recursion():
    validate_graph([node("0"), *(node(str(n), str(n - 1)) for n in range(1, 5000))])


def test_an_instant_is_the_same_in_any_zone():
    assert wake_time("a", "2026-03-13T09:00:00Z") == wake_time("a", "2026-03-13T10:00:00+01:00")
