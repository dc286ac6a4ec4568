"""A foreign module that would be imported in place of ours is named before anything starts, with the fix."""

import subprocess
import sys
from pathlib import Path

import pytest

import tasks
from runtime.edges.shadowing import refuse_shadowed_modules
from runtime.errors import ConfigurationError
from tests.harness.workspace import write_workspace

ROOT = Path(__file__).parents[2]
FOREIGN = ["tasks.py", "tasks/__init__.py", "runtime.py", "runtime/__init__.py", "beat_schedule.py"]

# As the installed command does: the working directory is not on the path of the command itself.
COMMAND = [sys.executable, "-P", "-c", "from runtime.edges.cli.app import main; main()"]


def put(folder, name):
    """Put a foreign module into a folder."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("""raise SystemExit("the foreign module was imported")\n""")
    return path


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command to its end in a folder that holds a workspace file."""
    write_workspace(tmp_path, "http://127.0.0.1:9/v1")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("AGENT_RUNTIME_REDIS_URL", "redis://127.0.0.1:9/0")

    def command(*argv):
        return subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, timeout=180)

    return command


@pytest.mark.parametrize("command", ["worker", "worker -Q turns", "beat", "dev", "demo --deny"])
@pytest.mark.parametrize("name", ["tasks.py", "runtime/__init__.py"])
def test_no_command_starts_processes_that_would_import_a_foreign_module(run, tmp_path, command, name):
    foreign = put(tmp_path, name)
    said = run(*COMMAND, *command.split())
    module = name.split("/")[0].removesuffix(".py")
    ours = ROOT / module / "__init__.py"
    assert (said.returncode, said.stdout) == (1, "")
    assert said.stderr == (
        f"error: CONFIGURATION_ERROR: {foreign} shadows the module {module!r} of governed-agent-runtime "
        f"({ours}): workers that start in {tmp_path} would import it in place of ours; "
        "rename it, or start from another folder\n"
    )
    assert not (tmp_path / ".agent-runtime").exists()


@pytest.mark.parametrize("name", FOREIGN)
def test_every_form_of_a_foreign_module_is_found(tmp_path, monkeypatch, name):
    foreign = put(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=rf"{foreign} shadows .*; rename it, or start from"):
        refuse_shadowed_modules()


@pytest.mark.parametrize("name", ["tasks/mine.py", "shop/tasks.py", "runtime/notes.txt", "tasks.txt"])
def test_what_shadows_nothing_is_left_alone(tmp_path, monkeypatch, name):
    """A folder without ``__init__.py`` comes after every package, wherever it lies."""
    put(tmp_path, name)
    monkeypatch.chdir(tmp_path)
    refuse_shadowed_modules()


@pytest.mark.parametrize("name", ["runtime.py", "runtime/__init__.py", "beat_schedule.py"])
def test_plain_celery_names_a_foreign_module_that_ours_would_import(run, tmp_path, name):
    foreign = put(tmp_path, name)
    said = run(sys.executable, "-m", "celery", "-A", "tasks", "worker")
    assert said.returncode != 0
    assert f"ImportError: {foreign} shadows the module" in said.stderr
    assert "rename it, or start from another folder" in said.stderr


def test_an_application_that_has_a_foreign_runtime_is_told_when_it_imports_ours(run, tmp_path):
    foreign = put(tmp_path, "runtime/__init__.py")
    said = run(sys.executable, "-c", "import tasks")
    assert said.stderr.splitlines()[-1].startswith(f"ImportError: {foreign} shadows the module 'runtime'")


def test_nothing_is_refused_where_nothing_shadows():
    tasks.shadowing.refuse_shadowed_modules()
    refuse_shadowed_modules()
