"""Finding tools: in files beside the workspace file, in importable modules, with clear errors."""

from __future__ import annotations

import sys

import pytest

from runtime.errors import ConfigurationError
from runtime.tools.declare import tool
from runtime.tools.registry import ToolRegistry

SOURCE = '''
from __future__ import annotations
from pydantic import BaseModel
from runtime.tools.context import ToolContext
from runtime.tools.declare import tool

class In(BaseModel):
    n: int

@tool("{name}")
def handler(input: In, ctx: ToolContext) -> In:
    """Return the input."""
    return input
'''


@pytest.fixture(autouse=True)
def clean_imports():
    modules, path = dict(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - set(modules):
        del sys.modules[name]
    sys.path[:] = path


def load(directory, *modules):
    registry = ToolRegistry()
    registry.load_modules(modules, directory)
    return registry


def test_a_file_beside_the_workspace_file_is_loaded(tmp_path):
    (tmp_path / "own_tools.py").write_text(SOURCE.format(name="own:a"))
    registry = load(tmp_path, "own_tools")
    assert [definition.name for definition in registry] == ["own:a"]
    assert registry.get("own:a").parse({"n": 1}).n == 1
    assert registry.get("own:b") is None


def test_a_module_in_a_folder_is_named_with_dots(tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "deep.py").write_text(SOURCE.format(name="own:a"))
    assert "own:a" in load(tmp_path, "own.deep")


def test_a_file_may_import_its_neighbour(tmp_path):
    (tmp_path / "neighbour_names.py").write_text("NAME = 'own:n'")
    (tmp_path / "own_tools.py").write_text(
        "from neighbour_names import NAME\n"
        + SOURCE.replace('"{name}"', "NAME").lstrip().replace("from __future__ import annotations\n", "")
    )
    assert "own:n" in load(tmp_path, "own_tools")


def test_two_workspaces_may_have_tool_files_of_one_name(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own_tools.py").write_text(SOURCE.format(name=f"own:{folder}"))
    assert "own:a" in load(tmp_path / "a", "own_tools")
    assert "own:b" in load(tmp_path / "b", "own_tools")


def test_the_same_module_twice_is_once(tmp_path):
    (tmp_path / "own_tools.py").write_text(SOURCE.format(name="own:a"))
    assert len(load(tmp_path, "own_tools", "own_tools")) == 1


def test_two_tools_of_one_name_are_refused_with_both_places(tmp_path):
    for name in ("one_tools", "two_tools"):
        (tmp_path / f"{name}.py").write_text(SOURCE.format(name="own:a"))
    with pytest.raises(ConfigurationError, match=r"'own:a'.*one_tools\.py:10.*two_tools\.py:10.*rename"):
        load(tmp_path, "one_tools", "two_tools")


@pytest.mark.parametrize(
    ("name", "source", "words"),
    [
        ("absent_tools", None, r"'absent_tools' was not found — put absent_tools\.py into"),
        ("absent.deep", None, r"'absent\.deep' was not found"),
        ("own_tools", "import absent_library", "imports 'absent_library', which is not installed"),
        ("own_tools", "1 / 0", "cannot be imported: ZeroDivisionError"),
        ("own_tools", "raise SystemExit(3)", "cannot be imported: SystemExit: 3"),
        ("own_tools", "def f(:", "cannot be imported: SyntaxError"),
        ("own_tools", "x = 1", r"declares no tool — decorate its functions with @tool"),
        ("json", "x = 1", "has the name of another module"),
        ("sys", "x = 1", "has the name of another module"),
        ("own_tools.py", "x = 1", r"write it without \.py"),
        ("../own_tools", None, "is not a module's name"),
    ],
)
def test_a_module_that_cannot_be_used_is_named_with_cause_and_fix(tmp_path, name, source, words):
    if source is not None:
        (tmp_path / f"{name.removesuffix('.py')}.py").write_text(source)
    with pytest.raises(ConfigurationError, match=words):
        load(tmp_path, name)


def test_a_registered_tool_is_found_by_name():
    definition = tool("t:x", description="x")(lambda input, ctx: input)
    registry = ToolRegistry([definition])
    registry.register(definition)
    assert (registry.get("t:x"), len(registry)) == (definition, 1)
