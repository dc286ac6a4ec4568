"""The Celery side: ``celery -A tasks worker``, ``celery -A tasks beat``, or `register` on your own app."""

from tasks.registration import register

__all__ = ["register"]


def __getattr__(name: str) -> object:
    # `celery -A tasks` looks for `app` here; an application that only registers ours must not make one.
    if name in {"app", "celery"}:
        from tasks.celery import app

        return app
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
