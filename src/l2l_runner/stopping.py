"""Ctrl-C and SIGTERM, heard at points where nothing is half done.

Python raises KeyboardInterrupt wherever it happens to be, be it inside a progress bar that holds its lock: the next one
to use the bar would wait for ever.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_received: list[int] = []


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that receives the number of a SIGINT or SIGTERM; a second one interrupts at once."""

    def receive(number: int, frame: FrameType | None) -> None:
        if _received:
            raise KeyboardInterrupt
        _received.append(number)

    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield _received  # signals reach the main thread only
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield _received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interrupted() -> bool:
    """Whether Ctrl-C was pressed."""
    return signal.SIGINT in _received


def stop_point() -> None:
    """A point at which work that is lost anyway can be given up.

    Raises:
        KeyboardInterrupt: a stop was requested.
    """
    if _received:
        raise KeyboardInterrupt
