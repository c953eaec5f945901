"""`Uploads`: pushes checkpoints one after the other in a thread of its own, so that a training never waits for them.

While the registry is unavailable, checkpoints stay in the queue and are tried again when the next one comes, and at the
end. If the queue is full, its oldest checkpoint is dropped. A checkpoint that is refused is logged and dropped. Nothing
here raises into the training.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.errors import Unavailable, printable

LIMIT = 8
"""Checkpoints that wait."""
LOG = logging.getLogger("registry.training")
REASON_LIMIT = 1000


def reason_of(error: Exception) -> str:
    """An error for the log, which may be a terminal: a registry chooses its text."""
    return printable(str(error), REASON_LIMIT)


@dataclass(frozen=True, slots=True)
class SavedCheckpoint:
    """A checkpoint's files and what is declared about it. `discard` deletes the files."""

    folder: Path
    step: int
    provenance: dict[str, Any]
    discard: Callable[[], None]


class Uploads:
    """A queue of checkpoints and the thread that calls `push` for each."""

    def __init__(self, push: Callable[[SavedCheckpoint], None], *, limit: int = LIMIT) -> None:
        self._push, self._limit = push, limit
        self._changed = threading.Condition()
        self._waiting: deque[SavedCheckpoint] = deque()
        self._requested = False
        """Whether to go through the queue."""
        self._is_pushing = False
        self._thread: threading.Thread | None = None

    def add(self, checkpoint: SavedCheckpoint) -> None:
        """Queue a checkpoint, and try all that wait again."""
        with self._changed:
            if len(self._waiting) - self._is_pushing >= self._limit:
                position = 1 if self._is_pushing else 0
                dropped = self._waiting[position]
                del self._waiting[position]
                LOG.warning("checkpoint %d was not pushed: %d others wait", dropped.step, self._limit)
                dropped.discard()
            self._waiting.append(checkpoint)
            self._request()

    def flush(self, seconds: float) -> int:
        """Try all that wait once more, for at most `seconds`; return how many are left."""
        until = time.monotonic() + seconds
        with self._changed:
            if self._waiting:
                self._request()
            while (self._requested or self._is_pushing) and (remaining := until - time.monotonic()) > 0:
                self._changed.wait(remaining)
            return len(self._waiting)

    def _request(self) -> None:
        self._requested = True
        self._changed.notify_all()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="registry-uploads")
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._requested and self._waiting):
                    self._requested = False
                    self._changed.notify_all()
                    self._changed.wait()
                checkpoint, self._is_pushing = self._waiting[0], True
            is_done = self._try(checkpoint)
            with self._changed:
                self._is_pushing = False
                self._requested = self._requested and is_done
                if is_done:
                    self._waiting.popleft()
                self._changed.notify_all()

    def _try(self, checkpoint: SavedCheckpoint) -> bool:
        """Whether the checkpoint is done with: pushed or refused."""
        try:
            self._push(checkpoint)
        except Unavailable as e:
            LOG.warning(
                "checkpoint %d was not pushed, and is tried again at the next save: %s", checkpoint.step, reason_of(e)
            )
            return False
        except Exception as e:  # a training goes on whatever the registry does
            LOG.warning("checkpoint %d was not pushed: %s", checkpoint.step, reason_of(e))
        checkpoint.discard()
        return True
