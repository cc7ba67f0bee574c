"""Stop requests are noted, and heard where nothing is half done."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path

import pytest

from l2l_runner import stopping
from l2l_runner.stopping import Stopped, interrupted, raise_if_stopped, relayed, stop_requests


def press(number: int = signal.SIGINT) -> None:
    signal.raise_signal(number)  # to this thread: of a signal to the process, another one may hear, and too late


def test_the_first_request_is_noted_and_the_second_interrupts_at_once():
    told = []
    before = signal.getsignal(signal.SIGINT)
    with stop_requests(lambda: told.append(True)) as received:
        raise_if_stopped()
        press(signal.SIGTERM)
        assert received == [signal.SIGTERM]
        assert not interrupted()
        with pytest.raises(KeyboardInterrupt):
            raise_if_stopped()
        with pytest.raises(KeyboardInterrupt):
            press()
    assert told == [True]
    assert signal.getsignal(signal.SIGINT) is before


def test_a_nested_listener_shares_the_requests_of_the_outer_one():
    with stop_requests() as outer:
        with stop_requests() as inner:
            press()
        assert inner is outer
        assert interrupted()
    with stop_requests() as again:
        assert again == []


def test_other_threads_listen_to_no_signals():
    heard: list[bool] = []

    def listen() -> None:
        before = signal.getsignal(signal.SIGINT)
        with stop_requests() as received:
            heard.append(received == [] and signal.getsignal(signal.SIGINT) is before)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert heard == [True]


def test_a_file_is_a_request_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "POLL", 0.01)
    with stop_requests() as received, relayed(tmp_path / "stop"):
        (tmp_path / "stop").touch()
        for _ in range(500):
            if received:
                break
            time.sleep(0.01)
        assert interrupted()


def test_a_stop_says_why_and_with_which_code():
    stopped = Stopped("Stopped at step 3.", 130)
    assert str(stopped) == "Stopped at step 3."
    assert stopped.exit_code == 130


def test_a_request_ends_with_what_it_stopped():
    with stop_requests():
        press()
        with pytest.raises(KeyboardInterrupt):
            raise_if_stopped()
    raise_if_stopped()
    assert not interrupted()
