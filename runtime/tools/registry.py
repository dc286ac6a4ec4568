"""The tools that a process knows, and how they are found."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import ModuleType

from runtime.errors import ConfigurationError
from runtime.tools.declare import ToolDefinition


class ToolRegistry:
    """Tool definitions by name, in the order of registration."""

    def __init__(self, definitions: Iterable[ToolDefinition] = ()) -> None:
        self._definitions: dict[str, ToolDefinition] = {}
        for definition in definitions:
            self.register(definition)

    def register(self, definition: ToolDefinition) -> None:
        """Add a tool; the same definition twice is once.

        Raises:
            ConfigurationError: If another tool has its name.
        """
        other = self._definitions.setdefault(definition.name, definition)
        if other is not definition:
            raise ConfigurationError(
                f"two tools have the name {definition.name!r}: one in {other.origin}, one in "
                f"{definition.origin} — rename one of them"
            )

    def get(self, name: str) -> ToolDefinition | None:
        """The tool of that name, if there is one."""
        return self._definitions.get(name)

    def __iter__(self) -> Iterator[ToolDefinition]:
        return iter(self._definitions.values())

    def __len__(self) -> int:
        return len(self._definitions)

    def __contains__(self, name: object) -> bool:
        return name in self._definitions

    def load_modules(self, modules: Iterable[str], base_dir: Path) -> None:
        """Import modules and register every tool among their globals.

        Args:
            modules: Names of files beside the workspace file (without ``.py``), or of importable modules.
            base_dir: The directory of the workspace file.

        Raises:
            ConfigurationError: Naming the module, the cause and the fix.
        """
        for name in modules:
            module = _load(name, base_dir.absolute())
            found = [value for value in vars(module).values() if isinstance(value, ToolDefinition)]
            if not found:
                raise ConfigurationError(
                    f"tool module {name!r} ({_file_of(module)}) declares no tool — decorate its functions "
                    "with @tool(...), or remove it from agent_runtime.tools.modules"
                )
            for definition in found:
                self.register(definition)


def _load(name: str, base_dir: Path) -> ModuleType:
    try:
        beside = _file_beside(name, base_dir)
        return _import_file(name, beside, base_dir) if beside else importlib.import_module(name)
    except ConfigurationError:
        raise
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise ConfigurationError(
                f"tool module {name!r} was not found — put {name.replace('.', '/')}.py into {base_dir}, or "
                "install the package that holds it"
            ) from None
        raise ConfigurationError(
            f"tool module {name!r} imports {error.name!r}, which is not installed — install it"
        ) from error
    except (Exception, SystemExit) as error:
        raise ConfigurationError(
            f"tool module {name!r} cannot be imported: {type(error).__name__}: {error} — see that "
            f"`python -c 'import {name}'` works in {base_dir}"
        ) from error


def _file_beside(name: str, base_dir: Path) -> Path | None:
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        raise ConfigurationError(
            f"tool module {name!r} is not a module's name — write it without .py, with dots"
        )
    stem = base_dir.joinpath(*name.split("."))
    return next((path for path in (stem.with_suffix(".py"), stem / "__init__.py") if path.is_file()), None)


def _import_file(name: str, path: Path, base_dir: Path) -> ModuleType:
    """Import a file under its own name, so that what it declares can be found by that name again."""
    present = sys.modules.get(name)
    if present is not None:
        if _same_file(present, path):
            return present
        if not hasattr(present, "__tool_module__"):
            raise ConfigurationError(
                f"tool module {name!r} ({path}) has the name of another module, {_file_of(present)} — "
                "rename the file"
            )
    if str(base_dir) not in sys.path:
        sys.path.append(str(base_dir))
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigurationError(f"tool module {name!r}: {path} is not Python — name a .py file")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__tool_module__"] = True
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_of(module: ModuleType) -> str | None:
    """Modules built into the interpreter have no file."""
    return getattr(module, "__file__", None)


def _same_file(module: ModuleType, path: Path) -> bool:
    file = _file_of(module)
    return file is not None and Path(file).resolve() == path.resolve()
