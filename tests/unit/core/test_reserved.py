"""The state directory has one name and many spellings; none of them is written to."""

from __future__ import annotations

import sys
import unicodedata

import pytest

from runtime.core.model import PathScope
from runtime.core.reserved import reaches_directory, spells
from runtime.core.scope_grant import grant_scopes
from runtime.core.scopes import RESERVED_ROOT, allows

SPELLINGS = [
    ".agent-runtime",
    ".AGENT-RUNTIME",
    ".agent-runtime.",
    ".agent-runtime . .",
    ".agent-runtime:stream",
    ".agent-runtime::$INDEX_ALLOCATION",
    ".agent\u200c-runtime",
    "\ufeff.agent-runtime",
    ".age\u00adnt-runtime",
    ".\uff41gent-runtime",
    "\uff0eagent-runtime",
    "\u2024agent-runtime",
    ".agent\uff0druntime",
    ".agent-runt\u2170me",
    "AGENT-~1",
    "AG1F4C~1",
]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_spelling_is_known_and_neither_written_nor_granted(spelling):
    assert spells(spelling, RESERVED_ROOT)
    everything = [
        PathScope(pattern="**", access="write"),
        PathScope(pattern=".*/**", access="write"),
        PathScope(pattern=f"{spelling}/**", access="write"),
    ]
    assert not allows([everything], "write", f"{spelling}/x")
    assert grant_scopes(everything, None, None, everything[2:]).reserved == (everything[2],)


@pytest.mark.parametrize(
    "name",
    [
        "agent-runtime",
        ".agent-runtime-old",
        ".agent_runtime",
        ".agent",
        ".agent-runtimé",
        "x.agent-runtime",
        "agent-2",
        "Agent~1",
        "agenda",
    ],
)
def test_a_neighbour_is_written_where_a_scope_names_it(name):
    scope = PathScope(pattern=f"{name}/**", access="write")
    assert allows([[scope]], "write", f"{name}/x")
    assert not grant_scopes([scope], None, None, [scope]).denied


def test_every_character_that_folds_to_one_of_the_name_is_a_spelling():
    """Tried with all of Unicode, in the place of each character that it might stand for."""
    for letter in sorted(set(RESERVED_ROOT)):
        place = RESERVED_ROOT.index(letter)
        for number in range(sys.maxunicode + 1):
            folded = unicodedata.normalize("NFKC", chr(number)).casefold()
            if folded == letter:
                assert spells(RESERVED_ROOT[:place] + chr(number) + RESERVED_ROOT[place + 1 :], RESERVED_ROOT)


@pytest.mark.parametrize(
    "pattern",
    [
        ".*",
        ".*/**",
        ".?gent-runtime/x",
        ".agent-runtime*",
        ".[Aa]gent-*/state/**",
        ".[!b]*/**",
        "{x,.agent-runtime}/y",
        "**/.agent-runtime/x",
        "./.agent-runtime",
        "*/../.agent-runtime",
    ],
)
def test_a_pattern_that_spells_it_is_reserved(pattern):
    assert reaches_directory(pattern, RESERVED_ROOT)


@pytest.mark.parametrize("pattern", ["**", "*/**", "?agent-runtime/**", "src/.agent-runtime/**", ".b*/**"])
def test_a_pattern_that_does_not_is_free(pattern):
    assert not reaches_directory(pattern, RESERVED_ROOT)
