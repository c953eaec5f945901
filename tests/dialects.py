"""Engines that share what SQLAlchemy learns: compiled statements and types are kept for each dialect, not each engine.

A test has an engine of its own, and would compile every statement of the registry again: half of what a push costs.
A server of its own process is not touched by this.

Example
    dialects.share(engine)      # one that has been connected; later engines of its kind compile nothing twice
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Dialect, Engine, create_engine
from sqlalchemy.util import LRUCache

from registry.server.database import engine as database_engine

KEPT = 20_000
"""Statements, more than all tests have: none is compiled a second time."""
_plain = create_engine
_shared: dict[str, tuple[Dialect, Any]] = {}


def share(engine: Engine) -> None:
    """From now on the engines of this kind work with this dialect. It has been connected, so it knows its server."""
    _shared.setdefault(engine.dialect.name, (engine.dialect, LRUCache(KEPT)))
    patched: Any = database_engine
    patched.create_engine = _create_engine


def _create_engine(*args: Any, **options: Any) -> Engine:
    engine = _plain(*args, **options)
    if engine.dialect.name in _shared:
        engine.dialect, compiled = _shared[engine.dialect.name]
        engine.update_execution_options(compiled_cache=compiled)
    return engine
