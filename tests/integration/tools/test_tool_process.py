"""Tools in a real process of their own, doing what they should not."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from runtime.core.model import ToolOutput
from runtime.errors import ConfigurationError, ErrorCode, InvalidInput
from runtime.tools.context import ToolContext
from runtime.tools.pool import ToolProcessPool
from runtime.tools.process import ToolCancelled, ToolCrashed, ToolProcess, ToolSetup, ToolTimedOut

HERE = Path(__file__).parent
SHORT = 0.5
LONG = 30.0


def context(**changes) -> dict:
    fields = {
        "session_id": "s",
        "node_id": "n",
        "run_id": "r",
        "task_id": "t",
        "call_id": "c",
        "idempotency_key": "k",
        **changes,
    }
    return ToolContext(**fields).to_json()


def setup(**changes) -> ToolSetup:
    return ToolSetup(
        **{
            "modules": ["hazardous_tools"],
            "base_dir": HERE,
            "environ": {"PATH": os.environ["PATH"]},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def shared():
    process = ToolProcess(setup(environ={"PATH": os.environ["PATH"], "SERVICE_TOKEN": "t0p-s3cret"}))
    yield process
    process.close()


@pytest.fixture
def run(shared):
    def run_tool(name, input=None, *, deadline_s=LONG, **more) -> ToolOutput:
        return shared.run(name, {} if input is None else input, context(), deadline_s=deadline_s, **more)

    return run_tool


def gone(pid: int, within: float = 10.0) -> bool:
    """Await a process's end: it is not ours, so that only looking tells."""
    try:
        process = psutil.Process(pid)
        if process.status() != psutil.STATUS_ZOMBIE:
            process.wait(within)
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return True
    except psutil.TimeoutExpired:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    return True


# --- ordinary calls -------------------------------------------------------------------------------


def test_a_call_runs_in_another_process_session_and_without_input(run):
    data = run("t:pid").data
    assert data["pid"] != os.getpid()
    assert data["session"] == data["pid"]
    assert data["stdin"] == ""


def test_the_process_lives_from_call_to_call(run):
    assert run("t:pid").data == run("t:pid").data


@pytest.mark.parametrize("tool", ["t:echo", "t:async", "t:typed"])
@pytest.mark.parametrize(
    "text", ["plain", "NUL \x00 and \x1f", "lone \ud800 and \udfff", "é — 🎈", "\U0010ffff"]
)
def test_every_text_comes_back_as_it_went(run, tool, text):
    assert run(tool, {"text": text}).unwrap() == {"text": text}


def test_an_integer_keeps_all_its_digits(run):
    assert run("t:echo", {"n": 10**300 + 1}).data == {"n": 10**300 + 1}


def test_the_tool_gets_its_context_and_the_time_left(shared):
    given = context(principal="ann", metadata={"a": [1]}, idempotency_key="key-1")
    data = shared.run("t:context", {}, given, deadline_s=20).data
    assert 0 < data.pop("seconds_left") <= 20
    assert data == given


def test_progress_arrives_in_order_and_before_the_end(run):
    heard = []
    assert run("t:progress", {"count": 500}, on_progress=heard.append).data == "done"
    assert heard == [{"number": number} for number in range(500)]


def test_progress_of_an_earlier_call_is_not_heard_in_a_later_one(run):
    heard = []
    for _ in range(5):
        run("t:late-progress")
        assert run("t:echo", {"a": 1}, on_progress=heard.append).data == {"a": 1}
    assert heard == []


def test_five_megabytes_come_back_whole(run):
    assert run("t:big", {"size": 5_000_000}).data == "x" * 5_000_000


def test_an_output_beyond_the_largest_frame_is_invalid_and_the_process_stays(run):
    before = run("t:pid").data["pid"]
    output = run("t:big", {"size": 65 * 1024 * 1024})
    assert (output.error.code, run("t:pid").data["pid"]) == (ErrorCode.INVALID_OUTPUT, before)


def test_what_tools_print_goes_to_the_log_and_not_into_the_conversation(run, caplog):
    caplog.set_level(logging.INFO, "runtime.tools.output")
    logged = threading.Event()

    class Signal(logging.Handler):
        def emit(self, record):
            if "x" * 1000 in record.getMessage():
                logged.set()

    handler = Signal()
    logging.getLogger("runtime.tools.output").addHandler(handler)
    try:
        assert run("t:print").data == "printed"
        assert logged.wait(10)
    finally:
        logging.getLogger("runtime.tools.output").removeHandler(handler)
    assert '"forged"' in caplog.text
    assert "to the error stream" in caplog.text
    assert r"\xff\xfe not text" in caplog.text


# --- failures that are outputs --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "code"),
    [
        ("t:raise", ErrorCode.TOOL_EXECUTION_FAILED),
        ("t:system-exit", ErrorCode.TOOL_EXECUTION_FAILED),
        ("t:tool-error", "EVENT_NOT_FOUND"),
        ("t:wrong-shape", ErrorCode.INVALID_OUTPUT),
        ("t:no-json", ErrorCode.INVALID_OUTPUT),
        ("t:missing", ErrorCode.TOOL_NOT_FOUND),
    ],
)
def test_a_failing_tool_is_an_output_and_the_process_stays(run, tool, code):
    before = run("t:pid").data["pid"]
    output = run(tool)
    assert (output.success, output.error.code) == (False, code)
    assert run("t:pid").data["pid"] == before


def test_an_input_that_does_not_fit_is_refused_in_the_process_as_well(run):
    assert run("t:typed", {"text": 1}).error.code == ErrorCode.INVALID_INPUT


def test_an_error_message_shows_no_secret(run):
    message = run("t:raise").error.message
    assert message == "t:raise raised ValueError: cannot reach postgresql://***@db with ***"


def test_an_input_that_is_no_json_is_refused_before_anything_is_sent(run):
    with pytest.raises(InvalidInput, match="t:echo"):
        run("t:echo", {"n": float("nan")})


# --- tools that break their process ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool", "how"),
    [("t:exit", "ended with exit code 3"), ("t:segfault", "was killed by SIGSEGV")],
)
def test_a_process_that_ends_in_mid_call_is_a_crash_and_the_next_call_gets_a_new_one(run, tool, how):
    before = run("t:pid").data["pid"]
    with pytest.raises(ToolCrashed, match=how):
        run(tool)
    assert run("t:pid").data["pid"] != before
    assert gone(before)


@pytest.mark.parametrize("tool", ["t:never", "t:stubborn", "t:hold-lock"])
def test_a_tool_that_does_not_return_is_killed_at_its_deadline(run, tool):
    before = run("t:pid").data["pid"]
    started = time.monotonic()
    with pytest.raises(ToolTimedOut, match=r"did not end within 0\.5 s"):
        run(tool, deadline_s=SHORT)
    assert SHORT <= time.monotonic() - started < SHORT + 5
    assert gone(before)
    assert run("t:pid").data["pid"] != before


def test_this_process_keeps_running_while_a_tool_holds_its_interpreter(run):
    """A heartbeat in another thread gets its turns."""
    beats = []
    stop = threading.Event()

    def beat():
        while not stop.wait(0.02):
            beats.append(1)

    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(ToolTimedOut):
        run("t:hold-lock", deadline_s=SHORT)
    stop.set()
    thread.join()
    assert len(beats) >= 5


def test_a_call_that_is_not_wanted_any_more_is_killed(run):
    wanted = threading.Event()
    wanted.set()
    with pytest.raises(ToolCancelled):
        run("t:never", on_progress=lambda _: wanted.clear(), cancelled=lambda: not wanted.is_set())


def test_an_error_of_the_listener_ends_the_call(run):
    def fail(data):
        raise ConnectionError("nobody listens")

    with pytest.raises(ConnectionError, match="nobody listens"):
        run("t:never", on_progress=fail)
    assert run("t:echo", {"a": 1}).data == {"a": 1}


@pytest.mark.parametrize("tool", ["t:fork-and-answer", "t:fork-by-c-and-answer"])
def test_a_forked_copy_cannot_answer_in_its_parents_stead(run, tool):
    assert run(tool).data == "the original"


def test_a_forked_copy_does_not_keep_the_call_alive_and_is_killed(run, tmp_path):
    started = time.monotonic()
    with pytest.raises(ToolCrashed, match="exit code 5"):
        run("t:fork-and-die", {"pid_file": str(tmp_path / "pid")})
    assert time.monotonic() - started < 10
    assert gone(int((tmp_path / "pid").read_text()))


def test_what_a_tool_started_is_killed_with_it(run):
    started = []
    with pytest.raises(ToolTimedOut):
        run("t:leave-child", deadline_s=2, on_progress=started.append)
    assert gone(started[0])


def test_a_process_that_was_killed_between_calls_is_replaced_without_notice(run, shared):
    before = run("t:pid").data["pid"]
    os.kill(before, signal.SIGKILL)
    os.waitid(os.P_PID, before, os.WEXITED | os.WNOWAIT)
    assert run("t:pid").data["pid"] not in (before, None)


# --- reconciliation -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "outcome", "output"),
    [("k-1", "happened", {"key": "k-1"}), ("raise", "unknown", None), ("crash", "unknown", None)],
)
def test_a_tool_says_what_became_of_a_call(shared, key, outcome, output):
    answer = shared.reconcile("t:reconcilable", key, deadline_s=LONG)
    assert (answer.outcome, answer.output) == (outcome, output)


def test_a_tool_without_reconcile_does_not_know(shared):
    assert shared.reconcile("t:echo", "k", deadline_s=LONG).outcome == "unknown"


# --- start ----------------------------------------------------------------------------------------


def test_the_process_does_not_see_our_servers_or_the_models_keys():
    environ = {
        "PATH": os.environ["PATH"],
        "AGENT_RUNTIME_DATABASE_URL": "a",
        "AGENT_RUNTIME_REDIS_URL": "b",
        "AGENT_RUNTIME_API_KEY": "c",
        "OPS_KEY": "d",
        "CALENDAR_TOKEN": "e",
    }
    process = ToolProcess(setup(environ=environ, secret_variables=frozenset({"OPS_KEY"})))
    try:
        seen = process.run("t:environment", {}, context(), deadline_s=LONG).data
    finally:
        process.close()
    assert seen["CALENDAR_TOKEN"] == "e"
    assert set(seen) & set(environ) == {"PATH", "CALENDAR_TOKEN"}


def test_another_definition_than_the_workers_is_refused():
    process = ToolProcess(setup(digests={"t:echo": "0" * 64}))
    with pytest.raises(ConfigurationError, match=r"another definition of 't:echo'.*restart the worker"):
        process.start()
    assert process.pid is None


def test_a_tool_that_only_the_worker_has_is_not_found_in_the_process():
    process = ToolProcess(setup(digests={"app:own": "0" * 64}))
    try:
        output = process.run("app:own", {}, context(), deadline_s=LONG)
    finally:
        process.close()
    assert output.error.code == ErrorCode.TOOL_NOT_FOUND


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import nowhere_at_all", "'nowhere_at_all', which is not installed"),
        ("import os; os._exit(7)", "ended with exit code 7"),
        ("x = 1", "declares no tool"),
    ],
)
def test_a_module_that_cannot_be_loaded_is_a_configuration_error(tmp_path, source, words):
    (tmp_path / "broken_tools.py").write_text(source)
    process = ToolProcess(setup(modules=["broken_tools"], base_dir=tmp_path))
    with pytest.raises(ConfigurationError, match=words):
        process.run("t:echo", {}, context(), deadline_s=LONG)


def test_close_ends_the_process_and_may_be_repeated():
    process = ToolProcess(setup())
    process.start()
    pid = process.pid
    process.close()
    process.close()
    assert process.pid is None
    assert gone(pid)


def test_the_process_dies_with_its_worker_even_in_the_middle_of_a_call():
    worker = textwrap.dedent(
        f"""
        import os, signal, sys
        from pathlib import Path
        sys.path.insert(0, {str(HERE)!r})
        from test_tool_process import ToolProcess, context, setup
        process = ToolProcess(setup())
        def die(data):
            print(process.pid, flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        process.run("t:hold-lock", {{}}, context(), deadline_s=60, on_progress=die)
        """
    )
    ended = subprocess.run(
        [sys.executable, "-c", worker], stdout=subprocess.PIPE, text=True, cwd=HERE.parents[2], timeout=60
    )
    assert ended.returncode == -signal.SIGKILL
    assert gone(int(ended.stdout))


def test_the_process_outlives_the_thread_that_started_it(run):
    """The system's parent-death signal goes by thread; the starting thread's end must not kill the tool."""
    process = ToolProcess(setup())
    try:
        thread = threading.Thread(target=process.start)
        thread.start()
        thread.join()
        first = process.pid
        assert process.run("t:pid", {}, context(), deadline_s=LONG).data["pid"] == first
    finally:
        process.close()


# --- the pool -------------------------------------------------------------------------------------


def test_threads_run_side_by_side_in_processes_of_their_own_that_are_used_again():
    pool = ToolProcessPool(setup())
    together = threading.Barrier(3)

    def call(_):
        def meet(data):
            together.wait(30)

        pool.run("t:progress", {"count": 1}, context(), deadline_s=LONG, on_progress=meet)

    def who(_):
        return pool.run("t:pid", {}, context(), deadline_s=LONG).data["pid"]

    with ThreadPoolExecutor(3) as threads:
        list(threads.map(call, range(3)))
        first = {who(None) for _ in range(6)}
    pool.close()
    assert len(first) == 1
    assert all(gone(pid) for pid in first)
