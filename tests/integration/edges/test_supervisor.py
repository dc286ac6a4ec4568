"""The supervisor starts, follows and ends real processes, and leaves none behind."""

import signal
import subprocess
import sys
import threading

import psutil
import pytest

from runtime.edges.supervisor import ChildFailed, Command, Supervisor
from runtime.errors import ConfigurationError

# Says "ready", then sleeps until a signal ends it.
SLEEPER = "import signal; print('ready', flush=True); signal.pause()"
# The same, but deaf to SIGTERM.
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEPER
# Has a child in its process group and says its pid.
PARENT = (
    "import subprocess, sys, signal\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
    "print('ready', child.pid, flush=True); signal.pause()"
)


class Lines:
    """A sink that a test can wait on."""

    def __init__(self):
        self.seen = []
        self._change = threading.Condition()

    def __call__(self, name, line):
        with self._change:
            self.seen.append((name, line))
            self._change.notify_all()

    def wait_for(self, fits):
        with self._change:
            assert self._change.wait_for(lambda: any(fits(*pair) for pair in self.seen), 20), self.seen


def python(name, code, **more):
    return Command(name=name, argv=(sys.executable, "-c", code), **more)


def test_lines_arrive_under_the_name_of_their_child():
    lines = Lines()
    with Supervisor(lines) as supervisor:
        supervisor.start(python("one", SLEEPER, ready="ready"))
        supervisor.wait_ready("one", 20)
    assert ("one", "ready") in lines.seen


def test_standard_input_and_environment_reach_the_child():
    lines = Lines()
    code = "import os, sys; print(sys.stdin.read(), os.environ['COLOUR'])"
    with Supervisor(lines) as supervisor:
        supervisor.start(python("one", code, stdin="hello", env={"COLOUR": "blue"}))
        lines.wait_for(lambda name, line: line == "hello blue")


def test_stop_ends_children_that_are_deaf_to_sigterm():
    supervisor = Supervisor(Lines(), stop_timeout=0.2)
    for name, code in {"kind": SLEEPER, "deaf": DEAF}.items():
        supervisor.start(python(name, code, ready="ready"))
        supervisor.wait_ready(name, 20)
    processes = [psutil.Process(pid) for pid in supervisor.pids.values()]
    supervisor.stop()
    assert not any(process.is_running() for process in processes)


def test_stop_ends_what_a_child_started():
    lines = Lines()
    with Supervisor(lines) as supervisor:
        supervisor.start(python("one", PARENT, ready="ready"))
        supervisor.wait_ready("one", 20)
        grandchild = psutil.Process(int(lines.seen[0][1].split()[1]))
    grandchild.wait(20)


def test_an_unexpected_end_is_told_with_name_code_and_last_lines():
    with Supervisor(Lines()) as supervisor:
        supervisor.start(python("one", "import sys; print('out of luck'); sys.exit(7)"))
        exit_ = supervisor.failure(20)
        assert (exit_.name, exit_.code, exit_.last_lines) == ("one", 7, ("out of luck",))
        supervisor._failures.put(exit_)
        with pytest.raises(ChildFailed, match=r"one exited with code 7.*\n  out of luck"):
            supervisor.check()


def test_a_child_that_ends_before_it_is_ready_fails_the_wait():
    with Supervisor(Lines()) as supervisor:
        supervisor.start(python("one", "raise SystemExit('no way')", ready="ready"))
        with pytest.raises(ChildFailed, match=r"one exited with code 1.*\n.*no way"):
            supervisor.wait_ready("one", 20)


def test_a_child_that_is_never_ready_fails_the_wait():
    with Supervisor(Lines()) as supervisor:
        supervisor.start(python("one", SLEEPER, ready="something else"))
        with pytest.raises(ChildFailed, match=r"not ready after 0\.1 s"):
            supervisor.wait_ready("one", 0.1)


def test_a_killed_child_is_started_again_as_often_as_allowed():
    lines = Lines()
    with Supervisor(lines, max_restarts=1) as supervisor:
        supervisor.start(python("one", SLEEPER, ready="ready"))
        supervisor.wait_ready("one", 20)
        first = supervisor.pids["one"]
        psutil.Process(first).kill()
        lines.wait_for(lambda name, line: line.startswith("ended by itself with code -9; restart 1"))
        lines.wait_for(lambda name, line: [text for _, text in lines.seen].count("ready") == 2)
        second = supervisor.pids["one"]
        assert second != first
        psutil.Process(second).kill()
        assert supervisor.failure(20).code == -signal.SIGKILL


def test_a_program_that_does_not_exist_is_named():
    with Supervisor(Lines()) as supervisor, pytest.raises(ConfigurationError, match="/no/such/program"):
        supervisor.start(Command(name="one", argv=("/no/such/program",)))


def test_a_killed_parent_takes_children_and_grandchildren_with_it():
    code = f"""
import sys
from runtime.edges.supervisor import Command, Supervisor
supervisor = Supervisor(lambda name, line: print(line.split()[-1], flush=True))
supervisor.start(Command(name="one", argv=(sys.executable, "-c", {PARENT!r}), ready="ready"))
supervisor.wait_ready("one", 20)
print(supervisor.pids["one"], flush=True)
sys.stdin.read()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        left = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
    gone, alive = psutil.wait_procs(left, timeout=20)
    assert (len(gone), alive) == (2, [])
