"""Signals that ask a training to stop: it finishes its step, saves, and says so."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

MARKER = "interrupted"  # file in the run folder, since torchrun replaces exit codes
_AT_ONCE_AFTER = 2.0  # seconds: torchrun passes on what a terminal has sent to everyone already


class Interrupted(Exception):
    """A training was asked to stop and has saved its state."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code  # exit code: 128 and the signal's number, as shells count


class StopRequest:
    """Notes SIGTERM and SIGINT while it is listening; a later second SIGINT stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._since = 0.0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Outside the main thread, where Python takes no signals, nothing is noted."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        kinds = (signal.SIGTERM, signal.SIGINT)
        before = {kind: signal.signal(kind, self._note) for kind in kinds}
        try:
            yield
        finally:
            for kind, handler in before.items():
                signal.signal(kind, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        elif number == signal.SIGINT and time.monotonic() - self._since > _AT_ONCE_AFTER:
            raise KeyboardInterrupt


def leave_signals_to_the_parent(worker: int = 0) -> None:
    """In a process that reads data. Ctrl-C in a terminal, torchrun and schedulers send signals to
    all processes of a training; one that reads must not end before the step that needs it. It ends
    with its parent in any case."""
    for kind in (signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_IGN)


def marker(run_dir: Path) -> Path:
    """The file that is there after a run was interrupted, until it goes on."""
    return run_dir / MARKER
