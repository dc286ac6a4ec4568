"""Reads YAML strictly, as plain JSON values that remember their lines.

Scalars are read by the core schema of YAML 1.2: only ``true`` and ``false`` are booleans (``off`` and
``no`` are texts, as ``posture: off`` needs), and dates stay texts. Twice the same key, several documents,
keys that are not texts and tags that name Python objects are errors.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

from runtime.core.model import Json

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong at one place of the file.

    Attributes:
        line: 1-based; None when the place is the file as a whole.
        path: Keys and indices that lead there.
        text: What is wrong, the value, and the fix.
    """

    line: int | None
    path: KeyPath
    text: str

    def at(self, name: str) -> str:
        """``name:line: path.to.key: text``."""
        place = name if self.line is None else f"{name}:{self.line}"
        return ": ".join(part for part in (place, dotted(self.path), self.text) if part)


@dataclass(slots=True)
class Document:
    """A parsed file: its value, the line of each key and item, and what is wrong with it."""

    value: Json = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, path: KeyPath) -> int | None:
        """Line of ``path``, or of the nearest place above it that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path)


def dotted(path: KeyPath) -> str:
    """``("lanes", 0, "id")`` as ``lanes[0].id``."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


class _Loader(yaml.SafeLoader):
    """A safe loader with the scalars of YAML 1.2's core schema."""


_Loader.yaml_implicit_resolvers = {}
_SCALARS = [
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:int", r"^(?:[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+)$", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
        "-+.0123456789",
    ),
    ("tag:yaml.org,2002:merge", r"^<<$", "<"),
]
for _tag, _pattern, _first in _SCALARS:
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list(_first))
_PLAIN_TAGS = {tag for tag, _, _ in _SCALARS} | {
    f"tag:yaml.org,2002:{kind}" for kind in ("str", "seq", "map")
}


def read_yaml(text: str) -> Document:
    """Parse one document; what is wrong is in its ``problems``, never raised."""
    document = Document()
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is not None:
            document.lines[()] = root.start_mark.line + 1
            document.value = _Reader(loader, document).value(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        reason = " ".join(filter(None, [error.context, error.problem]))
        if error.context == "expected a single document in the stream":
            reason = "a second document begins here, after a line of --- — keep one document in the file"
        document.problems.append(Problem(mark.line + 1 if mark else None, (), f"is not valid YAML: {reason}"))
    except yaml.YAMLError as error:
        document.problems.append(Problem(None, (), f"is not valid YAML: {' '.join(str(error).split())}"))
    finally:
        loader.dispose()
    return document


class _Reader:
    """Turns nodes into values, noting lines and problems as it goes."""

    def __init__(self, loader: _Loader, document: Document) -> None:
        self._loader = loader
        self._document = document
        self._open: set[int] = set()

    def value(self, node: yaml.Node, path: KeyPath) -> Any:
        if node.tag not in _PLAIN_TAGS:
            return self._wrong(node, path, f"the tag {node.tag!r} is not allowed — write a plain value")
        if id(node) in self._open:
            return self._wrong(node, path, "an alias contains itself — write the value out")
        self._open.add(id(node))
        try:
            if isinstance(node, yaml.MappingNode):
                return self._mapping(node, path)
            if isinstance(node, yaml.SequenceNode):
                return [self._item(child, (*path, index)) for index, child in enumerate(node.value)]
            return self._loader.construct_object(node)
        except (ValueError, KeyError):
            text = f"{node.value!r} does not fit the tag {node.tag!r} — remove the tag"
            return self._wrong(node, path, text)
        finally:
            self._open.discard(id(node))

    def _item(self, node: yaml.Node, path: KeyPath) -> Any:
        self._document.lines[path] = node.start_mark.line + 1
        return self.value(node, path)

    def _mapping(self, node: yaml.MappingNode, path: KeyPath) -> dict[str, Any]:
        self._refuse_duplicates(node, path)
        self._loader.flatten_mapping(node)
        result: dict[str, Any] = {}
        for key_node, value_node in node.value:
            if key_node.tag != "tag:yaml.org,2002:str":
                shown = getattr(key_node, "value", "")
                self._wrong(key_node, path, f"the key {shown!r} is not a text — put it in quotes")
                continue
            key_path = (*path, str(key_node.value))
            self._document.lines[key_path] = key_node.start_mark.line + 1
            result[key_node.value] = self.value(value_node, key_path)
        return result

    def _refuse_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, int] = {}
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            line = first.get(key_node.value)
            if line is None:
                first[key_node.value] = key_node.start_mark.line + 1
                continue
            self._wrong(
                key_node,
                (*path, key_node.value),
                f"the key stands here for a second time (first on line {line}) — keep one of them",
            )

    def _wrong(self, node: yaml.Node, path: KeyPath, text: str) -> None:
        self._document.problems.append(Problem(node.start_mark.line + 1, path, text))
