"""`adapter doctor`: diagnoses what is between you and the registry. It changes nothing.

A failing check does not stop the next one. The exit code is that of the first check that failed.
"""

import importlib.util
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path

import click

from registry import __version__
from registry.client import registries
from registry.client.audit import Audit
from registry.client.registry import Registry
from registry.errors import RegistryError
from registry.events import EventType
from registry.filesystem import IS_POSIX, user_folder
from registry.next_steps import NextStep, StepKind
from registry.roles import Scope

from .console import output, session
from .console.options import Command

EXTRAS = {"server": ("fastapi", "sqlmodel", "alembic", "uvicorn"), "worker": ("torch", "peft", "transformers")}
LOW_SPACE_BYTES = 2 * 10**9
SIGN_INS_SINCE = timedelta(days=1)
SIGN_INS_LIMIT = 1000


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One check and its result. `state` is ok, note (worth knowing) or wrong."""

    about: str
    state: str
    message: str
    exit_code: int = 0


@click.command(cls=Command)
def doctor() -> None:
    """Diagnose problems between you and the registry."""
    checks = [*_installation(), *_registry()]
    output.result({"checks": [asdict(check) for check in checks]}, lambda: _print(checks))
    output.exit_with(next((check.exit_code for check in checks if check.exit_code), 0))


def _installation() -> Iterator[Diagnosis]:
    message = f"adapter-registry {__version__} on Python {platform.python_version()}, {platform.machine()}"
    yield Diagnosis("version", "ok", message)
    for extra, packages in EXTRAS.items():
        missing = [name for name in packages if importlib.util.find_spec(name) is None]
        if missing:
            yield Diagnosis(
                f"[{extra}]", "note", f"not installed ({', '.join(missing)}): in a checkout, pip install '.[{extra}]'"
            )
        else:
            yield Diagnosis(f"[{extra}]", "ok", "installed")
    yield _disk(user_folder("cache"), "downloads")


def _disk(folder: Path, use: str) -> Diagnosis:
    free = session.free_bytes(folder)
    state = "ok" if free > LOW_SPACE_BYTES else "note"
    return Diagnosis("disk", state, f"{output.size(free)} free for {use} ({folder})")


def _registry() -> Iterator[Diagnosis]:
    try:
        target = registries.target()
    except RegistryError as e:
        yield _failed("registry", e)
        return
    yield Diagnosis(
        "registry", "ok", f"embedded: {target.source}" if target.embedded else f"{target.url}, set by {target.source}"
    )
    if target.embedded:
        yield _disk(session.data_folder(), "the embedded registry")
    if target.unencrypted:
        yield Diagnosis("network", "note", session.UNENCRYPTED)
    try:
        with session.registry() as registry:
            registry.connection.repeats = False  # an outage is a result, not something to wait for
            server = list(_server(registry))
            yield from server
            for check in _rights(registry, target):
                is_same = any(check.message == other.message for other in server)
                yield replace(check, message="fails for the same reason") if is_same else check
    except (RegistryError, OSError) as e:
        yield _failed("registry", e)


def _server(registry: Registry) -> Iterator[Diagnosis]:
    try:
        health = registry.health(store=True)
    except (RegistryError, OSError) as e:
        yield _failed("server", e)
        return
    state = "" if health.status == "ok" else f"{health.status}: "
    summary = f"{state}{health.version}, {health.database} at schema {health.schema_revision}, {health.blobs}"
    yield Diagnosis(
        "server", "ok" if health.status == "ok" else "wrong", summary, 0 if health.status == "ok" else output.TRY_LATER
    )
    if health.version and health.version.split(".")[:2] != __version__.split(".")[:2]:
        yield Diagnosis("version", "note", f"the server is {health.version} and this is {__version__}")
    options: dict[bool, list[str]] = {True: [], False: []}
    for name, is_supported in sorted(health.capabilities.items()):
        options[is_supported].append(name)
    texts = [
        f"{verb} {', '.join(names)}" for verb, names in (("has", options[True]), ("lacks", options[False])) if names
    ]
    if texts:
        consequence = ": all bytes pass through the server" if options[False] else ""
        yield Diagnosis("store", "note" if options[False] else "ok", "; ".join(texts) + consequence)


def _rights(registry: Registry, target: registries.RegistryTarget) -> Iterator[Diagnosis]:
    try:
        who = registry.whoami()
    except (RegistryError, OSError) as e:
        yield _failed("token", e)
        return
    yield Diagnosis("token", "ok", f"{who.actor}: {', '.join(who.scopes)} in {', '.join(who.namespaces)}")
    if not target.embedded and {Scope.ADMIN, Scope.AUDIT} & set(who.scopes):
        yield from _refused_sign_ins(registry)
    path = registries.profile_path()
    if IS_POSIX and not target.embedded and path.exists() and path.stat().st_mode & 0o077:
        yield Diagnosis("profile", "note", f"{path} holds tokens and others can read it: chmod 600 {path}")


def _refused_sign_ins(registry: Registry) -> Iterator[Diagnosis]:
    """Identity tokens that the registry refused of late, and why, which it tells only those who may read the log."""
    since = datetime.now(UTC) - SIGN_INS_SINCE
    events = Audit(registry).events(action=[EventType.ACCESS_UNKNOWN], first_at=since.isoformat())
    refused = [event for event in islice(events, SIGN_INS_LIMIT) if event.detail.get("reason")]
    if refused:
        last = refused[-1]
        message = (
            f"{len(refused)} refused since yesterday, the last at {output.moment(last.at)}: {last.detail['reason']}"
        )
        yield Diagnosis("sign-ins", "note", message)


def _failed(about: str, error: Exception) -> Diagnosis:
    next_step = error.next_step if isinstance(error, RegistryError) else ""
    if isinstance(error, RegistryError) and error.step == NextStep(StepKind.DIAGNOSE):
        next_step = "is it running, and is ADAPTER_REGISTRY right?"
    return Diagnosis(about, "wrong", f"{error}" + (f" ({next_step})" if next_step else ""), output.exit_code_of(error))


def _print(checks: list[Diagnosis]) -> None:
    colors = {"ok": "green", "note": "yellow", "wrong": "red"}
    states = {state: output.styled(f"{state:<5}", color) for state, color in colors.items()}
    output.facts([(check.about, f"{states[check.state]}  {check.message}") for check in checks], indent="")
