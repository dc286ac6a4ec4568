"""``agent-runtime sessions`` on sessions that the real runtime made."""

import pytest
from sqlalchemy import event

from runtime import start_governed_agent_session
from runtime.store.listing import list_sessions, list_steps

NODES = ["gather", "left", "right", "join"]


@pytest.fixture(scope="module")
def flow(start):
    return start("../flow")


def test_the_list_is_paged_and_begins_with_the_newest(console, home, call):
    for number in range(5):
        call(f"paged-{number}", "notes:read", "x")
    first = console("sessions", "list", "--limit", "2", "--json", cwd=home).json
    assert [each["session_id"] for each in first["sessions"]] == ["paged-4", "paged-3"]
    second = console("sessions", "list", "--limit", "2", "--before", first["next"], "--json", cwd=home).json
    assert [each["session_id"] for each in second["sessions"]] == ["paged-2", "paged-1"]


def test_a_session_id_with_dots_and_slashes_is_just_text(console, home, flow):
    said = console("sessions", "show", "../flow", "--json", cwd=home)
    assert (said.code, said.err, said.json["session_id"]) == (0, "", "../flow")


def test_show_tells_the_nodes_with_what_they_follow(console, home, flow):
    document = console("sessions", "show", "../flow", "--json", cwd=home).json
    assert document["status"] == "active"
    assert [node["id"] for node in document["nodes"]] == NODES
    assert document["nodes"][3]["depends_on"] == ["left", "right"]
    assert document["continuations"][0]["kind"] == "created"
    assert document["continuations"][0]["at"] == document["created_at"]
    assert document["created_at"].endswith("Z")


def test_show_draws_the_graph_in_layers(console, home, flow):
    drawn = console("sessions", "show", "../flow", cwd=home).out.splitlines()
    signs = {line.split()[1]: line.split()[0] for line in drawn if line[:1] in "─┬├╰" and line.strip()}
    assert signs == {"gather": "──", "left": "┬─", "right": "╰─", "join": "──"}
    assert any("join" in line and "left, right" in line for line in drawn)


def test_show_prints_the_graph_as_mermaid(console, home, flow):
    said = console("sessions", "show", "../flow", "--mermaid", cwd=home)
    lines = said.out.splitlines()
    assert (said.code, lines[0]) == (0, "flowchart TD")
    assert [line.split('"')[1].split("<br/>")[0] for line in lines if '["' in line] == NODES
    assert sorted(line.strip() for line in lines if "-->" in line) == [
        "n0 --> n1",
        "n0 --> n2",
        "n1 --> n3",
        "n2 --> n3",
    ]


def test_show_tells_which_approvals_are_waited_for(console, home, ask):
    request_id = ask("waiting")
    document = console("sessions", "show", "waiting", "--json", cwd=home).json
    assert [each["request_id"] for each in document["pending_approvals"]] == [request_id]
    assert request_id in console("sessions", "show", "waiting", cwd=home).out


def test_steps_are_paged_without_loss_or_repeat(console, home, call):
    for number in range(5):
        call("stepped", "notes:read", str(number))
    seen, after = [], []
    while after is not None:
        page = console("sessions", "steps", "stepped", "--limit", "2", *after, "--json", cwd=home).json
        seen += [step["id"] for step in page["steps"]]
        after = page["next"] and ["--after", page["next"]]
    assert len(seen) == len(set(seen)) == 5
    assert seen == sorted(seen)


def test_cancel_ends_what_has_not_started_and_repeats_harmlessly(console, home, start):
    start("unwanted")
    first = console("sessions", "cancel", "unwanted", "--reason", "a mistake", "--json", cwd=home)
    again = console("sessions", "cancel", "unwanted", "--json", cwd=home)
    assert (first.code, again.code) == (0, 0)
    shown = console("sessions", "show", "unwanted", "--json", cwd=home).json
    assert shown["cancelled_at"] is not None
    assert {node["status"] for node in shown["nodes"]} == {"cancelled"}
    refused = console("sessions", "resume", "unwanted", "--json", cwd=home)
    assert (refused.code, refused.json["error"]["code"]) == (1, "SESSION_CONFLICT")


def test_pause_and_unpause_tell_the_status_and_repeat_harmlessly(console, home, start):
    start("halted")
    for command, status in [("pause", "paused"), ("pause", "paused"), ("unpause", "active")]:
        said = console("sessions", command, "halted", "--reason", "a look", "--json", cwd=home)
        assert (said.code, said.json) == (0, {"session_id": "halted", "status": status})
    console("sessions", "pause", "halted", cwd=home)
    assert console("sessions", "show", "halted", "--json", cwd=home).json["paused_at"].endswith("Z")
    refused = console("sessions", "resume", "halted", "--json", cwd=home)
    assert (refused.code, refused.json["error"]["code"]) == (1, "SESSION_CONFLICT")
    assert "unpause" in refused.json["error"]["message"]


def test_the_operator_pauses_and_cancels_the_session_of_any_principal(console, home, application):
    turn = {"model_profile": "operations", "messages": [{"role": "user", "content": "go"}]}
    start_governed_agent_session(
        runtime=application,
        execute_turn_input=turn,
        ctx={"run_id": "run", "task_id": "task", "session_id": "anns", "principal": "ann"},
    )
    assert console("sessions", "pause", "anns", "--json", cwd=home).json["status"] == "paused"
    assert console("sessions", "cancel", "anns", "--json", cwd=home).code == 0
    tail = console("evidence", "tail", "anns", "--timeout", "0", "--json", cwd=home)
    assert "session_cancelled" in tail.out


def test_signal_hands_messages_over_once_per_key(console, home, start):
    flow = start("told")
    for _ in range(2):
        said = console(
            "sessions", "signal", "told", "left", "--message", "one", "--message", "two", "--key", "k",
            "--json", cwd=home,
        )  # fmt: skip
        assert (said.code, said.json["status"]) == (0, "active")
    assert [each["kind"] for each in flow.continuations()].count("signalled") == 1
    refused = console("sessions", "signal", "told", "ghost", "--message", "one", cwd=home)
    assert (refused.code, refused.out) == (1, "")
    assert "no node 'ghost'" in refused.err


def test_fork_tells_the_new_session_and_refuses_an_id_that_is_taken(console, home, start):
    start("first")
    said = console("sessions", "fork", "first", "left", "second", "--message", "other", "--json", cwd=home)
    assert (said.code, said.json) == (0, {"session_id": "second", "status": "active"})
    shown = console("sessions", "show", "second", "--json", cwd=home).json
    assert [node["id"] for node in shown["nodes"]] == NODES
    taken = console("sessions", "fork", "first", "right", "second", "--json", cwd=home)
    assert (taken.code, taken.json["error"]["code"]) == (1, "SESSION_CONFLICT")
    assert "use another session id" in taken.json["error"]["message"]


def test_resume_takes_a_key_and_a_turn_budget(console, home, start):
    flow = start("again")
    for _ in range(2):
        said = console("sessions", "resume", "again", "--key", "k", "--max-turns", "3", "--json", cwd=home)
        assert said.code == 0
    assert [each["kind"] for each in flow.continuations()].count("resumed") == 1


def test_resume_is_refused_to_another_principal(console, home, start):
    start("mine")
    assert console("sessions", "resume", "mine", "--json", cwd=home).json["session_id"] == "mine"
    refused = console("sessions", "resume", "mine", "--as", "mallory", cwd=home)
    assert (refused.code, refused.out) == (1, "")
    assert "belongs to another principal" in refused.err


def test_a_page_costs_the_same_statements_at_any_length_of_the_history(application, call):
    counted = []
    event.listen(
        application.parts.database.engine, "before_cursor_execute", lambda *given: counted.append(given[2])
    )

    def statements(read):
        counted.clear()
        read()
        return list(counted)

    def cost():
        database = application.parts.database
        return statements(lambda: list_sessions(database, limit=1)) + statements(
            lambda: list_steps(database, "grown", limit=1)
        )

    call("grown", "notes:read", "0")
    short = cost()
    for number in range(20):
        call("grown", "notes:read", str(number))
        call(f"grown-{number}", "notes:read", "x")
    assert cost() == short
