"""``agent-runtime doctor``: what of a deployment is there, what is missing, and how to mend it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import typer

from runtime.edges.cli import options

if TYPE_CHECKING:
    from runtime.edges.cli.config import Checked
    from runtime.settings import Settings
    from runtime.store.engine import Database

PING_SECONDS = 1.0
BEAT_SECONDS = 4.0
"""Beat sends the sweep twice a second; a busy worker may take one late."""

Level = Literal["ok", "warn", "fail"]
STYLES = {"ok": "green", "warn": "yellow", "fail": "red"}


@dataclass(frozen=True, slots=True)
class Line:
    """One thing that was looked at; ``fix`` says how to mend it unless it is ``ok``."""

    name: str
    level: Level
    text: str
    fix: str | None = None


@dataclass(frozen=True, slots=True)
class Workers:
    """The Celery workers that answered: their process ids and queues, and how often each ran the sweep."""

    pids: dict[str, list[int]] = field(default_factory=dict)
    queues: dict[str, list[str]] = field(default_factory=dict)
    sweeps: dict[str, int] = field(default_factory=dict)


def doctor(workspace: options.Workspace = None, as_json: options.Json = False) -> None:
    """Look at settings, workspace, database, Redis, workers, beat and keys; exit 1 if something fails."""
    from runtime.edges.cli.console import write_json

    lines: list[Line] = []
    for line in examine(workspace):
        lines.append(line)
        if not as_json:
            _print(line)
    bad = any(line.level == "fail" for line in lines)
    if as_json:
        write_json({"ok": not bad, "checks": [asdict(line) for line in lines]})
    if bad:
        raise typer.Exit(1)


def _print(line: Line) -> None:
    from rich.console import Console
    from rich.text import Text

    from runtime.edges.cli.show import WIDTH, printable

    console = Console(width=WIDTH, highlight=False)
    head = Text(f"{line.level:<4}  ", style=STYLES[line.level]) + Text(f"{line.name:<10}  ")
    console.print(head + Text(printable(line.text)))
    if line.fix is not None:
        console.print(Text(f"{'':<18}→ {printable(line.fix)}"))


def examine(workspace: Any = None) -> Iterator[Line]:
    """Look at everything, one line after the other; what rests on something that fails is left out."""
    from runtime.edges.cli.config import check_workspace
    from runtime.errors import ConfigurationError
    from runtime.settings import Settings

    try:
        settings = Settings.load(workspace=workspace)
    except ConfigurationError as error:
        yield Line("settings", "fail", str(error), "correct the variable, or unset it for the default")
        return
    yield Line("settings", "ok", f"state in {settings.state_dir}")
    checked = check_workspace(settings)
    yield from _workspace(settings, checked)
    yield from _database(settings, checked)
    yield from _models(checked, os.environ)
    yield from _live(settings, checked)


# --- files and SQL --------------------------------------------------------------------------------


def _workspace(settings: Settings, checked: Checked) -> Iterator[Line]:
    severities = [finding.severity for finding in checked.findings]
    path = settings.workspace.absolute()
    if not checked.good:
        first = checked.findings[severities.index("error")].text.split("\n")[0]
        text = f"{path}: {severities.count('error')} errors, the first: {first}"
        yield Line("workspace", "fail", text, "see all with 'agent-runtime config check'")
        return
    assert checked.workspace is not None
    text = f"{path}: {len(checked.registry)} tools, hash {checked.workspace.hash[:16]}"
    if severities:
        fix = "see them with 'agent-runtime config check'"
        yield Line("workspace", "warn", f"{text}, {len(severities)} warnings", fix)
    else:
        yield Line("workspace", "ok", text)


def _database(settings: Settings, checked: Checked) -> Iterator[Line]:
    from runtime.edges.cli.opening import refuse_missing_file
    from runtime.errors import AgentRuntimeError
    from runtime.settings import redact_url
    from runtime.store.engine import Database
    from runtime.store.migrate import HEAD, current_version

    shown = redact_url(settings.database_url)
    try:
        refuse_missing_file(settings)
        with closing(Database(settings.database_url)) as database:
            found = current_version(database)
            if found != HEAD:
                text = f"{shown} is at schema {found or 'none'}, this release needs {HEAD}"
                yield Line("database", "fail", text, "run 'agent-runtime db upgrade'")
                return
            yield Line("database", "ok", f"{shown}, schema {found}")
            yield from _active(database, checked)
    except AgentRuntimeError as error:
        yield Line(
            "database", "fail", str(error), "see that AGENT_RUNTIME_DATABASE_URL names a running server"
        )


def _active(database: Database, checked: Checked) -> Iterator[Line]:
    from sqlalchemy import text

    from runtime.store.workspaces import is_active

    if checked.workspace is None:
        return
    short = checked.workspace.hash[:16]
    with database.reading() as connection:
        some = connection.execute(text("SELECT 1 FROM workspace_version LIMIT 1")).first() is not None
    if is_active(database, checked.workspace.hash):
        yield Line("active", "ok", f"workers run under this workspace file ({short})")
    elif some:
        text_ = f"workers refuse this workspace file ({short}): others are active"
        yield Line("active", "fail", text_, "run 'agent-runtime config activate'")
    else:
        fix = "the first worker activates its own, or run 'agent-runtime config activate'"
        yield Line("active", "warn", "no workspace file was ever activated", fix)


def _models(checked: Checked, environ: Mapping[str, str]) -> Iterator[Line]:
    """Which variables are set; their values are nobody's business."""
    if checked.workspace is None:
        return
    for name, profile in checked.workspace.models.items():
        wanted = [profile.api_key_env]
        if profile.base_url is None and profile.base_url_env is not None:
            wanted.append(profile.base_url_env)
        missing = [variable for variable in wanted if not environ.get(variable, "").strip()]
        if missing:
            fix = "set it here and where workers run"
            yield Line("model", "fail", f"{name}: {', '.join(missing)} is not set", fix)
        else:
            yield Line("model", "ok", f"{name}: {', '.join(wanted)} is set")
    if not checked.workspace.models:
        fix = "add agent_runtime.models, or set AGENT_RUNTIME_API_KEY and AGENT_RUNTIME_BASE_URL"
        yield Line("model", "warn", "the workspace file names no model", fix)


# --- Redis and Celery -----------------------------------------------------------------------------


def _live(settings: Settings, checked: Checked) -> Iterator[Line]:
    import redis

    from runtime.live.stack import recorded_redis_url
    from runtime.settings import redact_url

    url = settings.redis_url or recorded_redis_url(settings.state_dir)
    if url is None:
        fix = "set AGENT_RUNTIME_REDIS_URL, or start 'agent-runtime dev', which records its own"
        yield Line("redis", "fail", "no Redis is known", fix)
        return
    shown = redact_url(url)
    try:
        with closing(redis.Redis.from_url(url, socket_connect_timeout=2, socket_timeout=2)) as client:
            info: dict[str, Any] = client.info()
    except (redis.RedisError, OSError, ValueError) as error:
        text = f"{shown} does not answer: {error}"
        yield Line("redis", "fail", text, "start it, or correct AGENT_RUNTIME_REDIS_URL")
        return
    yield _redis_line(shown, info)
    yield from _celery(url, checked)


def _redis_line(shown: str, info: Mapping[str, Any]) -> Line:
    name = f"{info.get('server_name', 'redis')} {info.get('valkey_version') or info.get('redis_version')}"
    if info.get("maxmemory_policy", "noeviction") != "noeviction":
        text = f"{shown} ({name}) may evict messages ({info['maxmemory_policy']})"
        return Line(
            "redis", "warn", text, "set maxmemory-policy noeviction; until then the sweep makes up for it"
        )
    if not info.get("aof_enabled"):
        text = f"{shown} ({name}) keeps nothing over a restart"
        return Line("redis", "warn", text, "set appendonly yes; until then the sweep makes up for it")
    return Line("redis", "ok", f"{shown} ({name})")


def _celery(url: str, checked: Checked) -> Iterator[Line]:
    from runtime.live.celery_settings import QUEUES
    from runtime.live.publisher import producer_app

    app = producer_app(url)
    try:
        found = _ask_workers(app, PING_SECONDS)
        if not found.pids:
            fix = "start 'agent-runtime worker' ('agent-runtime dev' starts all)"
            yield Line("workers", "fail", f"no worker answered within {PING_SECONDS:g} s", fix)
            return
        for name, pids in found.pids.items():
            queues = ", ".join(found.queues.get(name, [])) or "no queue"
            yield Line("workers", "ok", f"{name}: process {', '.join(map(str, pids))}; {queues}")
        served = {queue for queues in found.queues.values() for queue in queues}
        for queue in dict.fromkeys([*QUEUES, *(tool.queue for tool in checked.registry)]):
            if queue not in served:
                fix = f"start 'agent-runtime worker -Q {queue}'"
                yield Line("queues", "fail", f"nobody consumes the queue {queue!r}", fix)
        yield _beat(app, found)
    finally:
        app.close()


def _ask_workers(app: Any, seconds: float) -> Workers:
    """One broadcast that waits for whoever is there; the second question ends when they answered."""
    from runtime.live.celery_settings import SWEEP_TASK

    stats = app.control.inspect(timeout=seconds).stats() or {}
    workers = Workers()
    for name, said in sorted(stats.items()):
        pool = said.get("pool", {}).get("processes", [])
        workers.pids[name] = list(
            dict.fromkeys([said["pid"], *(pid for pid in pool if isinstance(pid, int))])
        )
        workers.sweeps[name] = said.get("total", {}).get(SWEEP_TASK, 0)
    if stats:
        known = app.control.inspect(list(stats), timeout=seconds, limit=len(stats)).active_queues() or {}
        for name, queues in known.items():
            workers.queues[name] = [queue["name"] for queue in queues]
    return workers


def _beat(app: Any, before: Workers) -> Line:
    """Beat is alive if the workers' count of sweeps rises."""
    from runtime.live.celery_settings import SWEEP_TASK

    began = time.monotonic()
    while time.monotonic() - began < BEAT_SECONDS:
        time.sleep(0.5)
        names = list(before.pids)
        stats = app.control.inspect(names, timeout=PING_SECONDS, limit=len(names)).stats() or {}
        if any(
            said.get("total", {}).get(SWEEP_TASK, 0) > before.sweeps.get(name, 0)
            for name, said in stats.items()
        ):
            return Line("beat", "ok", "the sweep runs")
    fix = "start 'agent-runtime beat'; without it nothing is retried, woken or expired"
    return Line("beat", "warn", f"no sweep ran for {BEAT_SECONDS:g} s", fix)
