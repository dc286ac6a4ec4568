"""What the project declares, it uses."""

import ast
import re
import tomllib
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

MODULES = {"pyyaml": "yaml"}
"""Modules whose name is not their distribution's."""

NOT_IMPORTED = {
    "packaging": "kombu's Redis transport needs it",
    "psycopg": "SQLAlchemy's URL names it",
    "flower": "celery's command line finds it",
    "mypy": "a command",
    "ruff": "a command",
    "pytest-timeout": "a plugin",
    "pytest-xdist": "a plugin",
    "types-pyyaml": "stubs",
}


def name_of(requirement):
    return re.split(r"[^A-Za-z0-9._-]", requirement)[0].lower()


def declared():
    project = PROJECT["project"]
    extras = chain.from_iterable(project["optional-dependencies"].values())
    return {name_of(each) for each in chain(project["dependencies"], extras)}


@cache
def imported(*folders):
    found = set()
    for folder in folders:
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Import):
                    found |= {each.name.split(".")[0] for each in node.names}
                elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("name", sorted(declared() - NOT_IMPORTED.keys()))
def test_a_declared_dependency_is_imported_somewhere(name):
    module = MODULES.get(name, name.replace("-", "_"))
    assert module in imported("runtime", "tasks", "tests", "bench")


@pytest.mark.parametrize("name", sorted(name_of(each) for each in PROJECT["project"]["dependencies"]))
def test_a_dependency_of_the_library_is_not_there_for_the_tests(name):
    module = MODULES.get(name, name.replace("-", "_"))
    assert name in NOT_IMPORTED or module in imported("runtime", "tasks")


@pytest.mark.parametrize("name", sorted(declared()))
def test_a_declared_dependency_is_pinned(name):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").lower()
    assert re.search(rf"^{re.escape(name)}==\S+$", pins, re.MULTILINE)


def test_the_source_distribution_carries_the_benchmarks_that_make_runs():
    assert "bench" in PROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["only-include"]
