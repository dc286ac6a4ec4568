"""How a worker and its tool process talk: frames of JSON over a socket that only the two of them hold.

A frame is its length in eight bytes, most significant first, then JSON in ASCII. JSON, and nothing that
can name code: what a tool sends cannot run anything in the worker.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any

_LENGTH = struct.Struct(">Q")

MAX_FRAME = 64 * 1024 * 1024
"""Bytes; a larger answer would cost the worker its memory."""


class FrameError(Exception):
    """What arrived is not a frame."""


class FrameTooLarge(FrameError):
    """A message is larger than `MAX_FRAME`."""


def encode(message: dict[str, Any]) -> bytes:
    """One message as a frame.

    Raises:
        FrameTooLarge: If it is larger than `MAX_FRAME`.
        ValueError: If it is not plain, finite JSON.
    """
    body = json.dumps(message, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii")
    if len(body) > MAX_FRAME:
        raise FrameTooLarge(f"{len(body)} bytes, at most {MAX_FRAME} are allowed")
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Puts frames together from what a socket delivers."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other side is gone.

        Raises:
            TimeoutError: If the socket's time-out passes first; nothing is lost.
            FrameError: If what arrived is not a message.
        """
        while True:
            frame = self._take()
            if frame is not None:
                return frame
            try:
                received = self._connection.recv(1024 * 1024)
            except ConnectionError:
                return None
            if not received:
                return None
            self._buffer += received

    def _take(self) -> dict[str, Any] | None:
        if len(self._buffer) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack_from(self._buffer)
        if length > MAX_FRAME:
            raise FrameTooLarge(f"a frame of {length} bytes, at most {MAX_FRAME} are allowed")
        end = _LENGTH.size + length
        if len(self._buffer) < end:
            return None
        body = bytes(self._buffer[_LENGTH.size : end])
        del self._buffer[:end]
        try:
            message = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise FrameError(f"unreadable JSON: {error}") from error
        if not isinstance(message, dict):
            raise FrameError(f"a message must be an object, not {type(message).__name__}")
        return message
