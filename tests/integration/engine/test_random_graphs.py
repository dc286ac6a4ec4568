"""Random graphs, messages shuffled, repeated and lost: each node runs once, after all that it waits for.

Real SQL, kernel and steps of workers; the model is a script, and the sweep finds what a lost message led to.
"""

import itertools
import random

import pytest

from runtime import start_governed_agent_workflow
from runtime.core.model import TURN_TOOL, ExecutionContext
from tests.harness.scripted import Stage, profile_name, staged

HOURS = ["2026-03-12T08:00:00Z", "2026-03-12T09:00:00Z", "2026-03-12T10:00:00Z", "2026-03-12T11:00:00Z"]
TOOL = {"tool": {"name": "x:do", "input": {}}, "tool_output": {"success": True, "data": {"ok": True}}}


def random_graph(chance: random.Random) -> list[dict]:
    """Nodes in any order, with and without tools, wake-ups, lists and conditions."""
    nodes: list[dict] = []
    for number in range(chance.randint(3, 9)):
        known = [node["id"] for node in nodes]
        node: dict = {
            "id": f"n{number}",
            "depends_on": chance.sample(known, min(len(known), chance.randint(0, 3))),
        }
        kind = chance.random()
        if kind < 0.2:
            node["wake_at"] = chance.choice(HOURS[1:])
        elif kind < 0.35:
            node["for_each"] = list(range(chance.randint(1, 4)))
        if node["depends_on"] and chance.random() < 0.2:
            node["when"] = {"node": node["depends_on"][0], "intent": chance.choice(["left", "right"])}
        nodes.append(node)
    chance.shuffle(nodes)
    return nodes


def random_script(nodes: list[dict], chance: random.Random) -> dict[str, list[dict]]:
    """Up to two calls, then a reply about one of two things; the instances of a list make no calls."""
    return {
        node["id"]: [
            *([] if "for_each" in node else [TOOL] * chance.choice([0, 0, 1, 2])),
            *[{"reply": "done", "intent": chance.choice(["left", "right"])}] * len(node.get("for_each", [1])),
        ]
        for node in nodes
    }


def start(stage: Stage, nodes: list[dict], script: dict[str, list[dict]]):
    defined = [
        {
            **node,
            "execute_turn_input": {
                "model_profile": profile_name(number),
                "messages": [{"role": "user", "content": "go"}],
                **({} if TOOL in script[node["id"]] else {"tool_catalog": []}),
            },
        }
        for number, node in enumerate(nodes)
    ]
    ctx = ExecutionContext(run_id="run-1", task_id="task-1", session_id="s-1")
    return start_governed_agent_workflow(
        runtime=stage.runtime, workflow={"session_id": "s-1", "nodes": defined}, ctx=ctx
    )


def ends(nodes: list[dict], script: dict[str, list[dict]]) -> dict[str, str]:
    """How each node has to end, by the rules of conditions alone."""
    by_id, found = {node["id"]: node for node in nodes}, {}

    def end(name: str) -> str:
        if name not in found:
            node = by_id[name]
            above = [end(needed) for needed in node["depends_on"]]
            asked = node.get("when")
            if asked is not None:
                source = by_id[asked["node"]]
                about = None if "for_each" in source else script[asked["node"]][-1]["intent"]
                runs = end(asked["node"]) == "completed" and about == asked["intent"]
            else:
                runs = not above or any(each != "skipped" for each in above)
            found[name] = "completed" if runs else "skipped"
        return found[name]

    return {name: end(name) for name in by_id}


@pytest.mark.parametrize("seed", range(24))
def test_each_node_runs_once_and_after_all_that_it_waits_for(seed):
    chance = random.Random(seed)
    nodes = random_graph(chance)
    script = random_script(nodes, chance)
    with staged([node["id"] for node in nodes], script, seed=seed) as stage:
        stage.put_clock(HOURS[0])
        flow = start(stage, nodes, script)
        stage.run("s-1")
        for hour in HOURS[1:]:
            stage.put_clock(hour)
            stage.run("s-1")
        expected = ends(nodes, script)
        assert {each.id: str(each.status) for each in flow.nodes() if "[" not in each.id} == expected
        assert flow.status() == "completed"
        assert_ran_once(nodes, script, stage.script.calls, expected)
        assert_in_order(nodes, stage.script.calls)
        numbers = [each["sequence"] for each in flow.continuations()]
        assert numbers == list(range(len(numbers)))
        assert stage.runtime.verify("s-1").verified


def assert_ran_once(nodes, script, calls, expected):
    """The calls of a node are those of its script, one by one; a skipped one makes none."""
    for node in nodes:
        names = [node["id"]]
        turns = len(script[node["id"]])
        if "for_each" in node:
            names, turns = [f"{node['id']}[{k}]" for k in range(len(node["for_each"]))], 1
        for name in names:
            made = [call for call in calls if call["node"] == name]
            indexes = [each["metadata"]["agent_turn_index"] for each in made if each["tool"] == TURN_TOOL]
            ran = expected[node["id"]] == "completed"
            assert indexes == (list(range(turns)) if ran else [])
            assert len(made) == (2 * turns - 1 if ran else 0)


def assert_in_order(nodes, calls):
    """Whatever a node waits for made its last call before the node made its first one."""
    places: dict[str, list[int]] = {}
    for place, call in enumerate(calls):
        places.setdefault(call["node"].partition("[")[0], []).append(place)
    pairs = itertools.chain.from_iterable(
        ((node["id"], each) for each in node["depends_on"]) for node in nodes
    )
    for name, needed in pairs:
        if name in places and needed in places:
            assert max(places[needed]) < min(places[name]), (name, needed)
