"""The receiving half of a websocket (RFC 6455), as much as listening to ComfyUI needs, on the standard library."""

from __future__ import annotations

import base64
import contextlib
import os
import socket
import struct

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10


class WebSocket:
    """A connection that delivers text messages; binary ones (previews) are dropped."""

    def __init__(self, host: str, port: int, path: str, timeout: float = 30.0) -> None:
        self._socket = socket.create_connection((host, port), timeout)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        lines = [
            f"GET {path} HTTP/1.1",
            f"Host: {host}:{port}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {key}",
            "Sec-WebSocket-Version: 13",
        ]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        while b"\r\n\r\n" not in self._buffer:
            self._fill()
        head, self._buffer = self._buffer.split(b"\r\n\r\n", 1)
        if b" 101 " not in head.split(b"\r\n")[0]:
            raise ConnectionError(f"expected a websocket, got {head.splitlines()[0]!r}")

    def receive(self, timeout: float) -> str:
        """The next text message; TimeoutError where none comes in so many seconds."""
        self._socket.settimeout(timeout)
        parts: list[bytes] = []
        kind = TEXT
        while True:
            first, second = self._take(2)
            code, final, size = first & 15, bool(first & 128), second & 127
            if size == 126:
                (size,) = struct.unpack(">H", self._take(2))
            elif size == 127:
                (size,) = struct.unpack(">Q", self._take(8))
            payload = self._take(size)
            if code == PING:
                self._send(PONG, payload)
            elif code == CLOSE:
                raise ConnectionError("the server closed the websocket")
            elif code != PONG:
                kind = code or kind  # 0 continues the message before
                parts.append(payload)
                if final and kind == TEXT:
                    return b"".join(parts).decode()
                if final:
                    parts.clear()

    def close(self) -> None:
        """Say goodbye and close."""
        with contextlib.suppress(OSError):  # the server may be gone already
            self._send(CLOSE, b"")
        self._socket.close()

    def _send(self, code: int, payload: bytes) -> None:
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([128 | code, 128 | len(payload)]) + mask + masked)

    def _fill(self) -> None:
        piece = self._socket.recv(65536)
        if not piece:
            raise ConnectionError("the server closed the connection")
        self._buffer += piece

    def _take(self, size: int) -> bytes:
        while len(self._buffer) < size:
            self._fill()
        piece, self._buffer = self._buffer[:size], self._buffer[size:]
        return piece
