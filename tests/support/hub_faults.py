"""Faults of a hub, for `HubServer.fault`: each answers a request in the place of the server."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from typing import Any

from hub_server import Fault, File, Handler, error_headers, metadata


def status(code: int, error: str | None = None, message: str | None = None, **headers: str) -> Fault:
    """The answer `code`; `error` and `message` are the hub's own headers, `headers` others with _ for -."""

    def answer(handler: Handler, file: File) -> bool:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.answer(code, more | error_headers(error, message))
        return True

    return answer


def body(content: bytes, **headers: str) -> Fault:
    """A complete answer of another content, with the file's own commit and etag."""

    def answer(handler: Handler, file: File) -> bool:
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        handler.answer(200, metadata(file) | more, content)
        return True

    return answer


def redirect(location: str) -> Fault:
    """A redirect to another address."""

    def answer(handler: Handler, file: File) -> bool:
        handler.answer(302, {"Location": location, **metadata(file)})
        return True

    return answer


def cut(after: int, *, reset: bool = False) -> Fault:
    """The file up to byte `after` of what is asked for; then the connection ends, or is reset."""

    def answer(handler: Handler, file: File) -> bool:
        handler.send_file(file, after)
        if reset:
            handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            handler.connection.close()
        handler.close_connection = True
        return True

    return answer


def stall(after: int, *, sent: Callable[[], Any] | None = None) -> Fault:
    """As `cut`, but the connection stays open, silent, until the server closes. Before byte 0: no answer at all."""

    def answer(handler: Handler, file: File) -> bool:
        if after:
            handler.send_file(file, after)
        if sent is not None:
            sent()
        handler.server.hub.closing.wait()
        handler.close_connection = True
        return True

    return answer


def first(action: Callable[[], Any]) -> Fault:
    """The ordinary answer, after `action()`."""

    def answer(handler: Handler, file: File) -> bool:
        action()
        return False

    return answer
