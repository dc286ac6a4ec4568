"""The canvas plan: whatever the graph, nothing is published twice, and canvas is used where it may be."""

from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.core.canvas import MAX_PROMOTED, NodePlan, Shape, plan_graph, plan_instance, shapes
from runtime.core.model import WorkflowNode


@st.composite
def graphs(draw) -> list[WorkflowNode]:
    """Graphs without cycles, listed in any order; a node is plain, timed, conditional or a group."""
    nodes: list[WorkflowNode] = []
    for number in range(draw(st.integers(1, 14))):
        known = [node.id for node in nodes]
        depends = draw(st.lists(st.sampled_from(known), unique=True, max_size=4)) if known else []
        values = draw(
            st.sampled_from(
                [{}, {}, {}, {"wake_after": "1s"}, {"for_each": ["x", "y"]}, {"on_error": "continue"}]
            )
        )
        if depends and draw(st.integers(0, 5)) == 0:
            values = {**values, "when": {"node": depends[0]}}
        tools = draw(st.sampled_from([{}, {"tool_catalog": []}, {"tool_catalog": []}]))
        nodes.append(
            WorkflowNode.model_validate(
                {"id": f"n{number}", "execute_turn_input": tools, "depends_on": depends, **values}
            )
        )
    return draw(st.permutations(nodes))


def dependants(nodes: list[WorkflowNode]) -> dict[str, list[str]]:
    found = defaultdict(list)
    for node in nodes:
        for needed in node.depends_on:
            found[needed].append(node.id)
    return found


@given(graphs(), st.data())
def test_every_ready_node_is_published_exactly_once(nodes, data):
    plans = plan_graph(nodes)
    ready = data.draw(st.lists(st.sampled_from([node.id for node in nodes]), unique=True))
    published = [name for shape in shapes(ready, plans) for name in shape.nodes]
    assert sorted(published) == sorted(ready)


@given(graphs(), st.data())
def test_a_node_that_is_named_twice_is_published_once(nodes, data):
    plans = plan_graph(nodes)
    ready = data.draw(st.lists(st.sampled_from([node.id for node in nodes])))
    assert shapes(ready, plans) == shapes(dict.fromkeys(ready), plans)


@given(graphs(), st.data())
def test_the_header_of_a_chord_is_all_that_its_join_waits_for_and_leads_to_it_alone(nodes, data):
    by_id, after = {node.id: node for node in nodes}, dependants(nodes)
    ready = data.draw(st.lists(st.sampled_from(sorted(by_id)), unique=True))
    for shape in shapes(ready, plan_graph(nodes)):
        if shape.joins:
            (join,) = {name for member in shape.nodes for name in after[member]}
            assert len(shape.nodes) > 1
            assert set(shape.nodes) == set(by_id[join].depends_on)
            assert all(after[member] == [join] for member in shape.nodes)
            assert all(by_id[member].single_turn and by_id[member].for_each is None for member in shape.nodes)


@given(graphs(), st.data())
def test_the_body_of_a_chord_starts_the_join_only_where_nothing_else_decides_about_it(nodes, data):
    by_id, after = {node.id: node for node in nodes}, dependants(nodes)
    ready = data.draw(st.lists(st.sampled_from(sorted(by_id)), unique=True))
    for shape in shapes(ready, plan_graph(nodes)):
        join = after[shape.nodes[0]][0] if shape.joins else None
        assert shape.body == (join if join is not None and by_id[join].plain else None)


@given(graphs(), st.data())
def test_a_chain_goes_on_with_the_sole_plain_successor_of_a_node_that_one_turn_ends(nodes, data):
    by_id, after = {node.id: node for node in nodes}, dependants(nodes)
    ready = data.draw(st.lists(st.sampled_from(sorted(by_id)), unique=True))
    for shape in shapes(ready, plan_graph(nodes)):
        if shape.then is not None:
            (first,) = shape.nodes
            assert after[first] == [shape.then]
            assert by_id[shape.then].depends_on == (first,)
            assert by_id[shape.then].plain
            assert by_id[first].single_turn
            assert by_id[first].for_each is None


@given(graphs())
def test_whoever_leads_to_one_join_alone_gets_canvas_where_it_may(nodes):
    """The other way round: single turns that make up a join's dependencies are never published one by one."""
    by_id, after, plans = {node.id: node for node in nodes}, dependants(nodes), plan_graph(nodes)
    for join in nodes:
        alone = all(
            after[name] == [join.id] and by_id[name].single_turn and by_id[name].for_each is None
            for name in join.depends_on
        )
        if alone and len(join.depends_on) > 1:
            (shape,) = shapes(join.depends_on, plans)
            assert shape.joins


@given(graphs())
def test_a_record_makes_ready_what_depends_on_its_node_alone_and_an_advance_sees_to_the_rest(nodes):
    by_id, after = {node.id: node for node in nodes}, dependants(nodes)
    for name, plan in plan_graph(nodes).items():
        followers = after[name]
        assert all(by_id[each].depends_on == (name,) and by_id[each].plain for each in plan.promotes)
        assert set(plan.promotes) <= set(followers)
        assert plan.more == (not followers or set(plan.promotes) != set(followers))
        assert sorted(each for shape in plan.sets_off for each in shape.nodes) == sorted(plan.promotes)
        assert by_id[name].for_each is None or not plan.promotes


@given(graphs())
def test_a_plan_is_read_back_as_it_was_written(nodes):
    for plan in plan_graph(nodes).values():
        assert NodePlan.of(plan.to_json()) == plan


@pytest.mark.parametrize(("width", "promoted"), [(MAX_PROMOTED, MAX_PROMOTED), (MAX_PROMOTED + 1, 0)])
def test_a_record_promotes_a_bounded_number_of_nodes(width, promoted):
    root = WorkflowNode(id="root", execute_turn_input={})
    leaves = [WorkflowNode(id=f"n{k}", execute_turn_input={}, depends_on=("root",)) for k in range(width)]
    plan = plan_graph([root, *leaves])["root"]
    assert len(plan.promotes) == promoted
    assert plan.more == (promoted == 0)


@pytest.mark.parametrize("width", [1, 2, 5])
def test_the_instances_of_a_list_are_a_chord_whose_body_is_an_advance(width):
    """Only an advance can join them: the group's result is made of theirs. One alone needs no chord."""
    group = WorkflowNode.model_validate(
        {"id": "g", "execute_turn_input": {"tool_catalog": []}, "for_each": ["x"] * width}
    )
    names = tuple(f"g[{k}]" for k in range(width))
    (shape,) = shapes(names, dict.fromkeys(names, plan_instance(group, width)))
    assert shape == Shape(names, joins=width > 1)
