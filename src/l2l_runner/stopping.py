"""Ctrl-C and SIGTERM, handled at points where nothing is half done.

Python raises KeyboardInterrupt at any point, even inside a progress bar that holds its lock. Whoever used the bar next
would deadlock.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

POLL = 0.5  # seconds

_received: list[int] = []
_listening = False


class Stopped(Exception):
    """The run was asked to stop (Ctrl-C or SIGTERM) and has saved its state."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message, exit_code)  # both, so that it can be unpickled in another process
        self.exit_code = exit_code

    def __str__(self) -> str:
        return str(self.args[0])


@contextmanager
def stop_requests(tell: Callable[[], object] | None = None) -> Iterator[list[int]]:
    """Collect the numbers of SIGINT and SIGTERM signals in a list; a second signal interrupts at once.

    A nested context, such as a job's within its sweep, shares the list of the outer one.

    Args:
        tell: called at the first signal.
    """
    global _listening
    if _listening:
        yield _received
        return

    def receive(number: int, frame: FrameType | None) -> None:
        if _received:
            raise KeyboardInterrupt
        _received.append(number)
        if tell is not None:
            tell()

    _received.clear()
    if threading.current_thread() is not threading.main_thread():
        yield _received  # signals reach the main thread only
        return
    before = {number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM)}
    _listening = True
    try:
        yield _received
    finally:
        _listening = False
        for number, handler in before.items():
            signal.signal(number, handler)
        _received.clear()  # a request is of this run: whatever is computed after it is not stopped


def interrupted() -> bool:
    """Tell whether Ctrl-C was pressed."""
    return signal.SIGINT in _received


@contextmanager
def relayed(request: Path) -> Iterator[None]:
    """Treat the appearance of a file as a SIGINT: unlike signals, it reaches processes on other machines."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(POLL):
            if request.exists() and not _received:
                _received.append(signal.SIGINT)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def raise_if_stopped() -> None:
    """Abandon work that would be lost anyway, if a stop was requested.

    Raises:
        KeyboardInterrupt: a stop was requested.
    """
    if _received:
        raise KeyboardInterrupt
