"""Figures of the runtime beside floors of raw Celery, measured on the same servers in the same run."""
