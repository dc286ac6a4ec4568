"""Every Celery setting of the runtime, with its reason.

A message is a hint: SQL is the queue. So messages are acknowledged early, never retried by Celery, never
delayed by it, and losing, repeating or reordering them is harmless. Applications and workers share this
module, so that both sides of the broker agree.
"""

from __future__ import annotations

from typing import Any

from kombu.entity import Queue

from runtime.live.chords import CHORD_EXPIRES_SECONDS, chord_backend

QUEUES = ("coordination", "maintenance", "turns", "tools")
"""The queues of the runtime; a tool may name one more of its own.

A worker looks into its queues in the order in which it names them: what moves sessions on, and takes moments,
does not wait behind turns and calls.
"""

TURN_TASK = "agent_runtime.execute_turn"
CALL_TASK = "agent_runtime.execute_tool_call"
ADVANCE_TASK = "agent_runtime.advance"
SWEEP_TASK = "agent_runtime.sweep"

HINT_EXPIRES_SECONDS = 300
"""Hints nobody took in this time are dropped; the sweep sends new ones."""


def broker_transport_options() -> dict[str, Any]:
    """Options of kombu's Redis transport."""
    return {
        # Longer than any task: a redelivery would be harmless, but it would be noise.
        "visibility_timeout": 6 * 3600,
        # An unreachable broker must not hold up the application or the worker.
        "socket_connect_timeout": 1,
        "socket_timeout": 5,
        # Notices connections that a firewall or a failover cut silently.
        "health_check_interval": 25,
        # Restore what a killed worker had taken within seconds instead of minutes.
        "unacked_restore_interval": 10,
        "unacked_restore_throttle": 1,
        # Four priorities, 0 the highest.
        "priority_steps": [0, 3, 6, 9],
        "sep": ":",
        "queue_order_strategy": "priority",
    }


def celery_settings(broker_url: str, queue_prefix: str = "") -> dict[str, Any]:
    """The settings of a Celery application that carries the runtime.

    Args:
        broker_url: A ``redis://`` URL; Valkey is reached by the same scheme.
        queue_prefix: Put before the name of each queue, to share a broker.
    """
    return {
        "broker_url": broker_url,
        "broker_transport_options": broker_transport_options(),
        # A worker that starts before its broker waits for it, and never gives up on it later.
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # A lost publish is swept up; a blocked commit path is not.
        "task_publish_retry": False,
        # JSON only: a message that carries pickled code is refused unread.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_serializer": "json",
        # Chords count their header here; a counter that nobody completes is forgotten.
        "result_backend": chord_backend(broker_url),
        "result_expires": CHORD_EXPIRES_SECONDS,
        "redis_socket_connect_timeout": 1,
        "redis_socket_timeout": 5,
        "redis_backend_health_check_interval": 25,
        # Nobody reads results: the journal holds them.
        "task_ignore_result": True,
        "task_store_errors_even_if_ignored": False,
        # Early acknowledgement: leases recover what a worker loses. Late acknowledgement in 5.7.0 makes a
        # worker exit when the broker vanishes while it holds a message.
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        # Take one message at a time, so that a long call does not hold others hostage.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": False,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        # Bounds what a leaking tool can cost (prefork). A new child takes half a second of processor time, as
        # much as sixty calls: it opens the runtime and loads its tools in a new process of theirs.
        "worker_max_tasks_per_child": 2000,
        # On SIGQUIT (or SIGTERM with REMAP_SIGTERM=SIGQUIT) running tasks get this long to finish.
        "worker_soft_shutdown_timeout": 20,
        # Task events, so that Flower shows turns and tool calls as they happen.
        "worker_send_task_events": True,
        # The workers' own events say all that these would, the queue included.
        "task_send_sent_event": False,
        "task_track_started": True,
        # The scheduler in memory: beat owns no state, several beats are harmless.
        "beat_scheduler": "celery.beat:Scheduler",
        "beat_max_loop_interval": 1,
        # The application's own log format is left alone.
        "worker_hijack_root_logger": False,
        "timezone": "UTC",
        "enable_utc": True,
        "task_create_missing_queues": True,
        "task_default_queue": queue_prefix + "maintenance",
        "task_queues": [Queue(queue_prefix + name) for name in QUEUES],
        "task_routes": {
            TURN_TASK: {"queue": queue_prefix + "turns"},
            CALL_TASK: {"queue": queue_prefix + "tools"},
            ADVANCE_TASK: {"queue": queue_prefix + "coordination"},
            SWEEP_TASK: {"queue": queue_prefix + "maintenance"},
        },
    }
