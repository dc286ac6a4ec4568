"""The pages name what the code has, and their links and examples hold."""

import re
from pathlib import Path

import pytest
import typer.main
import yaml

from runtime.core.lifecycle import StepEvent
from runtime.edges.cli.app import app
from runtime.errors import AgentRuntimeError, ErrorCode
from runtime.settings import PREFIX, Settings
from runtime.tools.registry import ToolRegistry
from runtime.workspace import load_workspace
from runtime.workspace_model import WorkspaceFile

ROOT = Path(__file__).parents[3]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def text_of(name):
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def blocks(path, language):
    pattern = rf"^```{language}\n(.*?)^```$"
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_to_one(page):
    targets = re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [target for target in targets if not (page.parent / target).exists()] == []


def test_every_page_is_in_the_index():
    linked = set(re.findall(r"\]\(([^)]+)\)", text_of("index.md")))
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert pages - {"index.md"} <= linked


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_python_block_is_python(page):
    for block in blocks(page, "python"):
        compile(block, str(page), "exec", flags=0x2000)  # PyCF_ALLOW_TOP_LEVEL_AWAIT


def test_every_setting_is_described_with_its_default():
    page = text_of("reference/settings.md")
    rows = dict(re.findall(rf"^\| `{PREFIX}(\w+)` \| ([^|]+) \|", page, re.MULTILINE))
    missing = [name for name in Settings.model_fields if name.upper() not in rows]
    assert missing == []
    for name, field in Settings.model_fields.items():
        if isinstance(field.default, int | float):
            assert rows[name.upper()].strip() == f"`{field.default:g}`"


def test_every_error_code_and_class_is_described():
    page = text_of("reference/errors.md")
    classes = [AgentRuntimeError, *AgentRuntimeError.__subclasses__()]
    public = [each.__name__ for each in classes if each.__module__ == "runtime.errors"]
    assert [name for name in [*ErrorCode, *public] if f"`{name}`" not in page] == []


def _commands(command, path=()):
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, (*path, name))
    if not getattr(command, "commands", None):
        yield path


def test_every_command_is_described():
    described = set()
    for cell in re.findall(r"^\| (`[^|]+) \|", text_of("reference/cli.md"), re.MULTILINE):
        first, *more = (word.split() for word in re.findall(r"`([^`]+)`", cell))
        words = [word for word in first if word.islower()]
        described |= {tuple(words), *((words[0], *word) for word in more)}
    assert set(_commands(typer.main.get_command(app))) == described


def _keys(schema, node):
    if "$ref" in node:
        node = schema["$defs"][node["$ref"].rpartition("/")[2]]
    yield from node.get("properties", {})
    below = [*node.get("properties", {}).values(), node.get("additionalProperties"), node.get("items")]
    for word in ("anyOf", "oneOf"):
        below += node.get(word, [])
    for inner in below:
        if isinstance(inner, dict):
            yield from _keys(schema, inner)


def test_every_key_of_the_workspace_file_is_described():
    schema = WorkspaceFile.model_json_schema()
    without_conditions = {**schema, "$defs": {**schema["$defs"]}}
    without_conditions["$defs"]["PolicyRule"]["properties"]["when"] = {}
    page = text_of("reference/workspace-file.md")
    keys = set(_keys(without_conditions, without_conditions)) - {"type"}
    assert sorted(key for key in keys if not re.search(rf"\b{key}\b", page)) == []


@pytest.mark.parametrize("block", blocks(ROOT / "docs/reference/workspace-file.md", "yaml"))
def test_the_workspace_pages_examples_are_accepted(block, tmp_path):
    (tmp_path / "workspace.yaml").write_text(block)
    assert load_workspace(tmp_path / "workspace.yaml").file


def test_the_tool_of_the_how_to_can_be_declared(tmp_path):
    page = ROOT / "docs/how-to/declare-a-tool.md"
    (tmp_path / "declared_in_the_how_to.py").write_text(blocks(page, "python")[0])
    registry = ToolRegistry()
    registry.load_modules(["declared_in_the_how_to"], tmp_path)
    assert [each.name for each in registry] == ["calendar:create-event"]


def test_the_approval_page_shows_a_valid_section():
    section = yaml.safe_load(blocks(ROOT / "docs/how-to/approve-a-call.md", "yaml")[0])
    assert WorkspaceFile.model_validate(section).agent_runtime.intents


def test_every_event_is_drawn():
    page = text_of("reference/states.md")
    assert [event for event in StepEvent if f": {event}\n" not in page] == []
