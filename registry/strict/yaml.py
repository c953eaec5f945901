"""YAML of plain values only, read as events: no tags, which can name code, and of bounded depth and size."""

import yaml

DEPTH_LIMIT = 20
EVENTS_LIMIT = 10_000
LOADER = getattr(yaml, "CBaseLoader", yaml.BaseLoader)
"""Every scalar stays a string: no type is guessed, and no constructor runs."""


def problem(text: str | bytes, *, aliases: bool = False) -> str:
    """Which rule the text breaks, in words; empty if none. An alias can grow without end where it is expanded."""
    depth = 0
    try:
        for count, event in enumerate(yaml.parse(text, LOADER)):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if getattr(event, "tag", None) is not None:
                return "has a YAML tag, which can make a loader run code"
            if isinstance(event, yaml.AliasEvent) and not aliases:
                return "has a YAML alias"
            if depth > DEPTH_LIMIT or count > EVENTS_LIMIT:
                return f"has over {EVENTS_LIMIT} YAML values or is nested over {DEPTH_LIMIT} deep"
    except yaml.YAMLError:
        return "is not YAML"
    return ""
