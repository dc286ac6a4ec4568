"""The Celery application of the runtime; ``celery -A tasks`` finds it here."""

from __future__ import annotations

from celery import Celery

from beat_schedule import beat_schedule
from runtime.errors import ConfigurationError
from runtime.live.celery_settings import celery_settings
from runtime.live.stack import recorded_redis_url
from runtime.settings import Settings
from tasks.registration import add_tasks


def make_app(settings: Settings) -> Celery:
    """Make the application for some settings.

    Raises:
        ConfigurationError: If no Redis is known.
    """
    broker = settings.redis_url or recorded_redis_url(settings.state_dir)
    if broker is None:
        raise ConfigurationError(
            "no Redis is known: set AGENT_RUNTIME_REDIS_URL, or start 'agent-runtime dev', "
            f"which records its own in {settings.state_dir}"
        )
    made = Celery("agent-runtime", set_as_current=False)
    made.conf.update(celery_settings(broker))
    made.conf.beat_schedule = beat_schedule()
    add_tasks(made)
    return made


app = make_app(Settings.load())
