"""Server-sent events out of a byte stream (https://html.spec.whatwg.org/multipage/server-sent-events.html).

httpx-sse does the work: it splits on CR, LF and CRLF only. Three things are arranged for it here: the text is
UTF-8 whatever the header says, a byte order mark is dropped (both by the ``utf-8-sig`` codec, which is
incremental), and a last event without its blank line is delivered (a blank line is appended).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import httpx
from httpx_sse import EventSource, ServerSentEvent

_HEADERS = {"content-type": "text/event-stream; charset=utf-8-sig"}


class _Ended(httpx.SyncByteStream):
    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = chunks

    def __iter__(self) -> Iterator[bytes]:
        yield from self._chunks
        yield b"\n\n"


def iter_events(chunks: Iterable[bytes]) -> Iterator[ServerSentEvent]:
    """The events of a stream that carry data, as they arrive.

    Args:
        chunks: The body, cut anywhere. What it raises passes through.
    """
    response = httpx.Response(200, headers=_HEADERS, stream=_Ended(chunks))
    for event in EventSource(response).iter_sse():
        if event.data:
            yield event
