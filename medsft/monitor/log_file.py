"""The log of a run that somebody watches on a terminal, whose lines would be gone with its window."""

from __future__ import annotations

import logging
from pathlib import Path

from medsft.monitor.sink import Sink

logger = logging.getLogger(__name__)


class LogFile(Sink):
    """Adds all that is logged, as plain lines with their time, to the end of a file."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._handler = _Handler(path, encoding="utf-8")
        self._handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        logging.getLogger("medsft").addHandler(self._handler)

    def close(self) -> None:
        """Ends the file."""
        logging.getLogger("medsft").removeHandler(self._handler)
        self._handler.close()


class _Handler(logging.FileHandler):
    """One that is left out from its first failure on, where logging would print a traceback each time."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger("medsft").removeHandler(self)
        logger.warning("%s cannot be written; the training goes on without it", self.baseFilename)
