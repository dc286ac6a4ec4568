"""Imports go one way, and the core touches nothing outside itself; both are read off the syntax trees."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted([*ROOT.glob("runtime/**/*.py"), *ROOT.glob("tasks/**/*.py"), ROOT / "beat_schedule.py"])

ORDER: tuple[frozenset[str], ...] = (
    frozenset({"errors"}),
    frozenset({"core"}),
    frozenset({"settings", "workspace"}),
    frozenset({"store", "live", "providers", "tools"}),
    frozenset({"kernel"}),
    frozenset({"engine"}),
    frozenset({"agent_runtime"}),
    frozenset({"orchestration"}),  # the documents' functions over an AgentRuntime
    frozenset({"runtime"}),  # the public face
    frozenset({"beat_schedule"}),
    frozenset({"edges", "tasks"}),
)
LEVEL = {room: level for level, rooms in enumerate(ORDER) for room in rooms}
ROOM_WORDS = {name.split("_")[0] for name in LEVEL}

IMPURE_MODULES = frozenset(
    [
        "asyncio",
        "celery",
        "concurrent",
        "ctypes",
        "fcntl",
        "glob",
        "http",
        "httpx",
        "httpx_sse",
        "importlib",
        "io",
        "kombu",
        "logging",
        "multiprocessing",
        "os",
        "platform",
        "psycopg",
        "pydantic_settings",
        "random",
        "redis",
        "secrets",
        "select",
        "shutil",
        "signal",
        "smtplib",
        "socket",
        "sqlalchemy",
        "sqlite3",
        "sqlmodel",
        "ssl",
        "stamina",
        "subprocess",
        "sys",
        "tempfile",
        "threading",
        "time",
        "urllib.request",
        "yaml",
    ]
)
IMPURE_CALLS = frozenset(["now", "utcnow", "today", "uuid1", "uuid4", "open", "input", "print", "getenv"])


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str | None:
    """Where a module lives; ``workspace_x.py`` is part of ``workspace``; None outside this project."""
    parts = module.split(".")
    if parts[0] in ("tasks", "beat_schedule"):
        return parts[0]
    if parts[0] != "runtime":
        return None
    name = parts[1] if len(parts) > 1 else "runtime"
    return name if name in LEVEL else name.split("_")[0]


def imported(source: str, package: str) -> Iterator[tuple[int, str]]:
    """Every import of a source text as (line, absolute module), wherever in the text it stands."""
    parents = package.split(".")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                names_a_room = module == "runtime" and alias.name.split("_")[0] in ROOM_WORDS
                yield node.lineno, f"{module}.{alias.name}" if names_a_room else module


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    module = module_name(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imported(path.read_text(encoding="utf-8"), package)


@pytest.mark.parametrize("path", [p for p in SOURCES if p.exists()], ids=lambda p: str(p.relative_to(ROOT)))
def test_a_room_imports_only_rooms_below_it(path: Path) -> None:
    own = room(module_name(path))
    assert own in LEVEL, f"{own!r} has no place in ORDER"
    wrong = [
        f"line {line}: {own} imports {target} ({module})"
        for line, module in imports_of(path)
        if (target := room(module)) is not None
        and target != own
        and LEVEL.get(target, len(ORDER)) >= LEVEL[own]
    ]
    assert wrong == []


@pytest.mark.parametrize(
    "path",
    sorted(ROOT.glob("runtime/core/**/*.py")),
    ids=lambda p: str(p.relative_to(ROOT)),
)
def test_the_core_touches_no_clock_randomness_environment_database_or_broker(path: Path) -> None:
    modules = [
        f"line {line}: imports {module}"
        for line, module in imports_of(path)
        if module in IMPURE_MODULES or module.split(".")[0] in IMPURE_MODULES
    ]
    calls = [
        f"line {node.lineno}: calls {name}()"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and (name := getattr(node.func, "attr", getattr(node.func, "id", None))) in IMPURE_CALLS
    ]
    assert modules + calls == []


def test_the_sources_are_found() -> None:
    """A moved tree would make the two tests above pass without looking at anything."""
    assert {"runtime.errors", "runtime.core.model"} <= {module_name(path) for path in SOURCES}


def test_every_form_of_import_is_seen() -> None:
    """Plain, from, relative, inside a function, and through the public face."""
    source = (
        "import runtime.store.x\nfrom runtime import engine, AgentRuntime\n"
        "def f():\n    from ..kernel import host\nimport json\n"
    )
    rooms = {room(module) for _, module in imported(source, "runtime.core")}
    assert rooms == {"store", "engine", "runtime", "kernel", None}
