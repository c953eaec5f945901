"""`adapter doctor`: looks at everything between you and the registry and says what is wrong with it.

Invariants
- It changes nothing, and a failing look does not stop the next one.
- It exits 0 when nothing is wrong, else with the exit code of the first thing that is.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

from registry import __version__
from registry.client.registry import Registry
from registry.errors import RegistryError

from . import output, session

EXTRAS = {"server": ("fastapi", "sqlmodel", "alembic", "uvicorn"), "worker": ("torch", "peft", "transformers")}
LITTLE_SPACE_BYTES = 2 * 10**9


@dataclass(frozen=True, slots=True)
class Look:
    """One thing that was looked at: `state` is ok, note (worth knowing) or wrong."""

    about: str
    state: str
    message: str
    exit_code: int = 0


@click.command()
@output.json_option
def doctor() -> None:
    """Diagnose problems between you and the registry."""
    looks = [*_here(), *_registry()]
    output.answer({"looks": [asdict(look) for look in looks]}, lambda: _print(looks))
    code = next((look.exit_code for look in looks if look.exit_code), 0)
    click.get_current_context().exit(code)


def _here() -> Iterator[Look]:
    message = f"adapter-registry {__version__} on Python {platform.python_version()}, {platform.machine()}"
    yield Look("version", "ok", message)
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            yield Look(
                f"[{extra}]", "note", f"not installed ({', '.join(missing)}): pip install 'adapter-registry[{extra}]'"
            )
        else:
            yield Look(f"[{extra}]", "ok", "installed")
    home = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    folder = next(p for p in [Path(home).expanduser(), *Path(home).expanduser().parents] if p.is_dir())
    free = shutil.disk_usage(folder).free
    state = "ok" if free > LITTLE_SPACE_BYTES else "note"
    yield Look("disk", state, f"{output.size(free)} free for downloads ({folder})")


def _registry() -> Iterator[Look]:
    try:
        where = session.target()
    except RegistryError as e:
        yield _wrong("registry", e)
        return
    yield Look("registry", "ok", f"{'embedded' if where.embedded else where.url}, from {where.source}")
    if where.readable:
        yield Look("network", "note", session.IN_THE_CLEAR)
    try:
        with session.registry() as registry:
            yield from _server(registry)
            yield from _rights(registry, where)
    except (RegistryError, OSError) as e:
        yield _wrong("registry", e)


def _server(registry: Registry) -> Iterator[Look]:
    try:
        health = registry.health(store=True)
    except (RegistryError, OSError) as e:
        yield _wrong("server", e)
        return
    summary = f"{health.status}: {health.version}, {health.database} at schema {health.schema_revision}, {health.blobs}"
    yield Look(
        "server", "ok" if health.status == "ok" else "wrong", summary, 0 if health.status == "ok" else output.LATER
    )
    if health.version.split(".")[:2] != __version__.split(".")[:2]:
        yield Look("version", "note", f"the server is {health.version} and this is {__version__}")
    for name, able in sorted(health.capabilities.items()):
        yield Look("store", "ok", f"{name}: {able}")


def _rights(registry: Registry, where: session.RegistryTarget) -> Iterator[Look]:
    try:
        who = registry.whoami()
    except (RegistryError, OSError) as e:
        yield _wrong("token", e)
        return
    yield Look("token", "ok", f"{who.actor}: {', '.join(who.scopes)} in {', '.join(who.namespaces)}")
    path = session.profile_path()
    if not where.embedded and path.exists() and path.stat().st_mode & 0o077:
        yield Look("profile", "note", f"{path} holds tokens and can be read by others: chmod 600 it")


def _wrong(about: str, error: Exception) -> Look:
    code = output.exit_code_of(error)
    step = getattr(error, "next_step", "")
    return Look(about, "wrong", f"{error}" + (f" ({step})" if step else ""), code)


def _print(looks: list[Look]) -> None:
    colors = {"ok": "green", "note": "yellow", "wrong": "red"}
    output.facts(
        [(look.about, f"{click.style(f'{look.state:<5}', fg=colors[look.state])}  {look.message}") for look in looks],
        indent="",
    )
