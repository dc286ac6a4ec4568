"""The Celery side: ``celery -A tasks worker``, ``celery -A tasks beat``, or `register` on your own app."""

from tasks.shadowing import refuse_shadowed_modules

refuse_shadowed_modules()  # the next import would take whatever `runtime` there is

from tasks.registration import register  # noqa: E402 - see above

__all__ = ["register"]


def __getattr__(name: str) -> object:
    # `celery -A tasks` looks for `app` here; an application that only registers ours must not make one.
    if name in {"app", "celery"}:
        from tasks.celery import app

        return app
    raise AttributeError(f"module 'tasks' has no attribute {name!r}")
