"""Sets the demo's stage: a fresh directory, a model, Valkey, workers and beat; strikes it again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from runtime import AgentRuntime
from runtime.edges.demo.calendar_tools import seed
from runtime.edges.demo.model_server import DemoModelServer
from runtime.edges.demo.story import SEED_EVENTS, workspace_text
from runtime.edges.demo.wire import MODEL_NAME
from runtime.edges.embedded import EmbeddedValkey, open_runtime, running_stack, stack_commands
from runtime.edges.supervisor import LineSink, Supervisor
from runtime.errors import MissingEnvironment
from runtime.settings import Settings

URL_VARIABLE, KEY_VARIABLE = "AGENT_RUNTIME_BASE_URL", "AGENT_RUNTIME_API_KEY"
MODEL_VARIABLE, CALENDAR_VARIABLE = "AGENT_RUNTIME_MODEL", "AGENT_RUNTIME_DEMO_CALENDAR"
STAND_IN_KEY = "stand-in-needs-no-key"


@dataclass(frozen=True)
class Model:
    """The model that plays: its name, its address, and whether it is the scripted stand-in."""

    name: str
    base_url: str
    scripted: bool


@dataclass(frozen=True)
class Stage:
    """All that runs during the demo.

    Attributes:
        runtime: Attached to the stack.
        settings: Where the stack's servers and files are.
        model: Who plays the model.
        calendar: The calendar's file.
        workers: The processes beside Valkey.
        valkey: The private server.
    """

    runtime: AgentRuntime
    settings: Settings
    model: Model
    calendar: Path
    workers: Supervisor
    valkey: EmbeddedValkey

    def check(self) -> None:
        """Raise if one of the processes ended by itself.

        Raises:
            ChildFailed: With its name, exit code and last log lines.
        """
        self.workers.check()
        self.valkey.check()


def configured_model(environ: Mapping[str, str]) -> Model | None:
    """The model that the environment names; ``None`` if it names neither an address nor a model.

    Raises:
        MissingEnvironment: It names one without what else is needed.
    """
    if not environ.get(URL_VARIABLE) and not environ.get(MODEL_VARIABLE):
        return None
    missing = [name for name in (URL_VARIABLE, KEY_VARIABLE, MODEL_VARIABLE) if not environ.get(name)]
    if missing:
        raise MissingEnvironment(
            f"to use your own model set {', '.join(missing)} as well; "
            f"to use the scripted stand-in unset {URL_VARIABLE} and {MODEL_VARIABLE}"
        )
    return Model(environ[MODEL_VARIABLE], environ[URL_VARIABLE], scripted=False)


@contextmanager
def stage(
    run_dir: Path, *, sink: LineSink, tell: Callable[[str], None], beat: bool = True
) -> Iterator[Stage]:
    """Run everything that the story needs in the fresh directory ``run_dir``; stop it on exit.

    Args:
        run_dir: Made here; keeps the database, the calendar and the logs afterwards.
        sink: Receives the processes' log lines.
        tell: Receives a sentence about each thing that was started.
        beat: Whether beat runs; without it nothing is swept.
    """
    with ExitStack() as stack:
        model = configured_model(os.environ)
        valkey = stack.enter_context(EmbeddedValkey(run_dir, sink=sink))
        tell(f"Valkey (process {valkey.pid}) and SQLite under {run_dir}")
        if model is None:
            server = stack.enter_context(DemoModelServer())
            model = Model(MODEL_NAME, server.base_url, scripted=True)
            os.environ[KEY_VARIABLE] = STAND_IN_KEY
            tell(f"a scripted stand-in for a model (no AI) at {model.base_url}")
        else:
            tell(f"your model {model.name} at {model.base_url}")
        workspace = run_dir / "workspace.yaml"
        workspace.write_text(workspace_text(model=model.name, base_url=model.base_url), encoding="utf-8")
        calendar = run_dir / "calendar.db"
        os.environ[CALENDAR_VARIABLE] = str(calendar)
        seed(calendar, SEED_EVENTS)
        settings = Settings.load(
            workspace=workspace,
            state_dir=run_dir,
            redis_url=valkey.url,
            database_url=f"sqlite:///{run_dir.absolute() / 'runtime.db'}",
        )
        runtime = stack.enter_context(open_runtime(settings))
        workers = stack.enter_context(running_stack(stack_commands(settings, beat=beat), sink))
        processes = ", ".join(f"{name} (process {pid})" for name, pid in workers.pids.items())
        tell(f"Celery: {processes}")
        yield Stage(runtime, settings, model, calendar, workers, valkey)
