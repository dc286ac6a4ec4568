"""The command line's frame: exit codes, JSON on standard output, and errors without tracebacks."""

import json
import signal

import psutil
import pytest

from runtime.edges.cli.console import LogFiles, stoppable


def test_help_lists_the_commands_and_exits_0(agent_runtime, tmp_path):
    done = agent_runtime("--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("demo", "dev", "worker", "beat"))


@pytest.mark.parametrize(
    "arguments", [["no-such-command"], ["demo", "--no-such-option"], ["worker", "-c", "0"]]
)
def test_wrong_use_exits_2_and_is_told_on_standard_error(agent_runtime, tmp_path, arguments):
    done = agent_runtime(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr


def test_an_error_is_one_line_with_its_code(agent_runtime, tmp_path):
    done = agent_runtime("worker", cwd=tmp_path, AGENT_RUNTIME_REDIS_URL="nonsense")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: CONFIGURATION_ERROR: ")
    assert len(done.stderr.splitlines()) == 1


def test_an_error_under_json_is_one_document(agent_runtime, tmp_path):
    done = agent_runtime("demo", "--json", cwd=tmp_path, AGENT_RUNTIME_MODEL="some-model")
    assert done.returncode == 1
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "MISSING_ENVIRONMENT"
    assert "AGENT_RUNTIME_BASE_URL, AGENT_RUNTIME_API_KEY" in error["message"]


def test_sigterm_ends_a_stoppable_block_as_ctrl_c_does():
    before = signal.getsignal(signal.SIGTERM)

    def wait_for_the_end():
        with stoppable():
            psutil.Process().send_signal(signal.SIGTERM)
            signal.pause()

    with pytest.raises(KeyboardInterrupt):
        wait_for_the_end()
    assert signal.getsignal(signal.SIGTERM) is before


def test_log_lines_go_to_one_file_per_process_without_the_sweeps_own(tmp_path):
    with LogFiles(tmp_path / "logs") as logs:
        logs("turns", "[x: INFO/MainProcess] Task agent_runtime.sweep[1] received")
        logs("turns", "[x: ERROR/MainProcess] Task agent_runtime.sweep[1] raised")
        logs("beat", "starting")
    assert (tmp_path / "logs" / "turns.log").read_text() == (
        "[x: ERROR/MainProcess] Task agent_runtime.sweep[1] raised\n"
    )
    assert (tmp_path / "logs" / "beat.log").read_text() == "starting\n"
