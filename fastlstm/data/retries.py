"""Reads that are tried again after an error of the system, and are named in the log if slow."""

import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_T = TypeVar("_T")
_log = logging.getLogger(__name__)

PAUSES = (1.0, 4.0, 16.0)
"""Seconds between one try of a read and the next."""

SLOW = 30.0
"""Seconds after which a read that has not ended is reported."""

_LASTING = (PermissionError, IsADirectoryError, NotADirectoryError)


def read_with_retries(read: Callable[[], _T], name: str) -> _T:
    """Return ``read()``; after an ``OSError`` try again, up to four times in all.

    File systems of a network fail for a while and come back. The pauses before the second, third
    and fourth try are 1, 4 and 16 seconds. Each failure is a warning in the log. A missing
    permission, or a folder in the place of a file, is raised at once.

    A read that has not ended after 30 seconds is reported in the log by name. The system cannot
    cancel it, so it goes on.

    Args:
        read: what is called.
        name: of the file, for the log and the error.

    Raises:
        OSError: all tries failed. The text names the file, the number of tries and the last reason.
            Other exceptions of ``read`` are raised as they are.
    """
    _start_watch()
    thread, begin = threading.get_ident(), time.monotonic()
    tries = len(PAUSES) + 1
    try:
        for number in range(1, tries):
            _running[thread] = (name, time.monotonic())
            try:
                return read()
            except _LASTING:
                raise
            except OSError as error:
                pause = PAUSES[number - 1]
                _running.pop(thread)
                _log.warning(
                    "%s: try %d of %d to read it failed (%s); the next one is in %g s",
                    *(name, number, tries, error, pause),
                )
            time.sleep(pause)
        _running[thread] = (name, time.monotonic())
        try:
            return read()
        except OSError as error:
            seconds = time.monotonic() - begin
            raise OSError(
                f"{name}: cannot be read, {tries} tries in {seconds:.0f} s failed, the last one"
                f" with: {error}"
            ) from error
    finally:
        _running.pop(thread, None)


# The reads that are going on: the number of the thread, the name, and when the read began. A thread
# that lives as long as the process looks at them: starting one for each window takes 0.4 ms.
_running: dict[int, tuple[str, float]] = {}
_watched_process = -1


def _start_watch() -> None:
    global _watched_process
    if _watched_process != os.getpid():  # the first read, or the first one after a fork
        _watched_process = os.getpid()
        _running.clear()
        threading.Thread(target=_watch, name="fastlstm slow reads", daemon=True).start()


def _watch() -> None:
    reported: dict[int, tuple[str, float]] = {}
    while True:
        time.sleep(min(1.0, SLOW / 4))
        now = time.monotonic()
        for thread, (name, since) in list(_running.items()):
            if now - since >= SLOW and reported.get(thread) != (name, since):
                reported[thread] = (name, since)
                _log.warning("%s: a read has not ended after %.0f s", name, now - since)
