"""docs/reference/events.md: the types of events, from registry/events.py."""

from __future__ import annotations

import re

from registry.events import WEBHOOK_DEFAULT, EventType
from scripts.reference.tables import table

INTRODUCTION = """\
# Events

The audit log and webhooks use these types. `adapter audit log` filters by type. A webhook sends the types that it was
created with, by default:

"""


def markdown() -> str:
    """The whole page."""
    rows = (
        (f"`{event_type}`", event_type.about.value, "*actor* " + re.sub(r"\{(\w+)\}", r"*\1*", event_type.message))
        for event_type in EventType
    )
    defaults = "".join(f"- `{event_type}`\n" for event_type in WEBHOOK_DEFAULT)
    return INTRODUCTION + defaults + "\n" + table(["type", "object", "reads as"], rows)
