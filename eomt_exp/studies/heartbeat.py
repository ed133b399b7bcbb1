"""Signs of life of a controller, for those on other machines who cannot see its process."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection

from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import BaseStorage

from eomt_exp.studies.owners import BEAT_SECONDS

_log = logging.getLogger(__name__)


class Heartbeat:
    """A thread that writes `alive`, the time, to each open trial; it ends with the process."""

    def __init__(
        self,
        storage: BaseStorage,
        open_trials: Callable[[], Collection[int]],
        seconds: float = BEAT_SECONDS,
    ) -> None:
        self.storage, self.open_trials, self.seconds = storage, open_trials, seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it beats already."""
        if self._thread is None:
            self._ended.clear()
            self._thread = threading.Thread(target=self._beat, name="study", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """End it; a beat that hangs in the storage is left behind."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
            self._thread = None

    def _beat(self) -> None:
        while not self._ended.wait(self.seconds):
            for trial_id in self.open_trials():
                self._sign(trial_id)

    def _sign(self, trial_id: int) -> None:
        try:
            self.storage.set_trial_user_attr(trial_id, "alive", time.time())
        except UpdateFinishedTrialError:
            pass  # it came to its end meanwhile
        except Exception as error:
            # A storage that is away for a minute must not end a study of days.
            _log.warning("The study's storage took no sign of life: %s", error)
