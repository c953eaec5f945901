"""Logs of the server, workers and agents: one line for each event on standard error, as text or as JSON.

    2026-11-27T12:00:00.123Z INFO request id=5f3a actor=ci method=GET route=/api/v1/whoami status=200 ms=2.1 …
    {"time": "2026-11-27T12:00:00.123Z", "level": "INFO", "message": "request", "id": "5f3a", …}

Whatever comes from elsewhere is escaped: nothing can steer a terminal or look like another line. Fields come from
`extra={"fields": {…}}`.
"""

import functools
import json
import logging
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from registry.errors import Invalid

from . import output

Say = Callable[[str], None]
FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")
FORMAT_VARIABLE, LEVEL_VARIABLE = "ADAPTER_LOG", "ADAPTER_LOG_LEVEL"
_PLAIN = re.compile(r"[!#-<>-\[\]-~]+\Z")
"""A value that needs no quotes: visible ASCII without `"`, `=` and backslash."""


class LineFormatter(logging.Formatter):
    """Formats a record as one line. `as_json`: as a JSON object."""

    def __init__(self, *, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """The line, with the fields of the record and its traceback."""
        fields: dict[str, Any] = dict(getattr(record, "fields", {}))
        if record.exc_info:
            fields["error"] = self.formatException(record.exc_info)
        second, milliseconds = divmod(int(record.created * 1000), 1000)
        time = f"{_time_of(second)}.{milliseconds:03}Z"
        if self._as_json:
            return json.dumps({"time": time, "level": record.levelname, "message": record.getMessage(), **fields})
        parts = [time, record.levelname, output.one_line(record.getMessage())]
        return " ".join([*parts, *(f"{name}={_value(value)}" for name, value in fields.items())])


class _StandardError(logging.Handler):
    """Writes to what standard error is at that moment. A log that cannot be written stops nothing."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except (OSError, ValueError):
            pass


@functools.lru_cache(maxsize=2)
def _time_of(second: int) -> str:
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _value(value: object) -> str:
    text = str(value)
    return text if _PLAIN.match(text) else json.dumps(text)


def configure(log_format: str, level: str, *, variables: tuple[str, str]) -> None:
    """Send all logs of this process to standard error. `Invalid` (SETTING_INVALID) for an unknown format or level."""
    for variable, value, choices in zip(variables, (log_format, level), (FORMATS, LEVELS), strict=True):
        if value not in choices:
            raise Invalid("SETTING_INVALID", f"{variable}: {value[:40]!r} is not one of {', '.join(choices)}")
    # What no line shows need not be looked up for each record (logging HOWTO, "Optimization").
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging._srcfile = None
    handler = _StandardError()
    handler.setFormatter(LineFormatter(as_json=log_format == "json"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("registry").setLevel(level.upper())


def reporters(program: str, *, once: bool) -> tuple[Say, Say]:
    """How a worker or an agent reports events, and how it warns: log lines, or the text for a person who runs it once.

    `ADAPTER_LOG` always prints log lines. With `--json` only they are printed.
    """
    log_format = os.environ.get(FORMAT_VARIABLE, "")
    if not writes_lines(once=once):
        say: Say = output.line if output.is_text() else (lambda _text: None)
        return say, say
    level = os.environ.get(LEVEL_VARIABLE, "") or "info"
    configure(log_format or "text", level, variables=(FORMAT_VARIABLE, LEVEL_VARIABLE))
    logger = logging.getLogger(f"registry.{program}")
    return logger.info, logger.warning


def writes_lines(*, once: bool) -> bool:
    """Whether a worker or an agent writes log lines."""
    return not once or bool(os.environ.get(FORMAT_VARIABLE))
