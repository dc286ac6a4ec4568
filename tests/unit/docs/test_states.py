"""The page of states is what the tables say."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_the_committed_page_is_what_make_docs_would_write():
    spec = importlib.util.spec_from_file_location("generate_states", ROOT / "docs" / "generate_states.py")
    generator = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generator)
    committed = (ROOT / "docs" / "reference" / "states.md").read_text(encoding="utf-8")
    assert committed == generator.page(), "run 'make docs'"
