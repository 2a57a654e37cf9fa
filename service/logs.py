"""What the log looks like: lines to read, or with `log_format: json` one object for each line."""

import copy
import datetime
import logging
from typing import Any

import orjson
from uvicorn.config import LOGGING_CONFIG


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, and the `facts` that it was given as extra."""

    def format(self, record: logging.LogRecord) -> str:
        content: dict[str, Any] = {
            "time": datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "facts", {}),
        }
        if record.exc_info:
            content["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(content, default=str).decode()


def logging_config(level: str, style: str) -> dict[str, Any]:
    """uvicorn's configuration of logging, with the service's loggers and the chosen style."""
    config = copy.deepcopy(LOGGING_CONFIG)
    config["loggers"]["service"] = {"handlers": ["default"], "level": level.upper(), "propagate": False}
    if style == "json":
        config["formatters"]["default"] = {"()": JsonFormatter}
    return config
