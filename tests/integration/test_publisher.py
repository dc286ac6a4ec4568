"""Publishing by many threads of one process at once."""

import threading

import redis

from runtime.core.model import StepKind
from runtime.live.hints import AdvanceHint, ChainHint, ChordHint, StepHint
from runtime.live.publisher import CeleryPublisher, producer_app

THREADS = 24
"""More than the connections that Celery keeps for publishing."""


def hint(name: str) -> StepHint:
    return StepHint(name, "s-1", "n", StepKind.TURN, "turns")


def test_many_threads_that_publish_a_canvas_and_plain_hints_at_once_all_come_to_an_end(valkey):
    client = redis.Redis.from_url(valkey.url)
    client.flushall()
    publisher = CeleryPublisher(producer_app(valkey.url))
    assert publisher.app.amqp.producer_pool.limit < THREADS
    together, sent = threading.Barrier(THREADS), []

    def publish(number: int) -> None:
        a, b, c, d, e = (hint(f"{number}{letter}") for letter in "abcde")
        together.wait(60)
        sent.append(publisher.publish([ChordHint((a, b), c), ChainHint(d, e), hint(f"{number}f"), hint("g")]))
        sent.append(publisher.publish([AdvanceHint("s-1")]))

    threads = [threading.Thread(target=publish, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert sent == [True] * THREADS * 2
    assert client.llen("turns") == THREADS * 5  # a chord's body and a chain's second part come later
    assert client.llen("coordination") == THREADS
