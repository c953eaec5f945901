"""`adapter serve` and `adapter migrate`, and the embedded registry that other commands use without a server.

Invariants
- An empty database is initialized; an old schema is refused, and only `adapter migrate` changes one.
- The first administrator's token is printed once, at the first start, and is stored nowhere but as its hash.
- SIGTERM and Ctrl-C let running requests end, then exit 0.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
import uvicorn
from fastapi import FastAPI

from registry.errors import Unavailable
from registry.server import actors
from registry.server.access import tokens
from registry.server.app import create_app
from registry.server.database import schema
from registry.server.database.engine import Engine, open_database
from registry.server.evaluation import engine_compat
from registry.server.maintenance import reevaluate
from registry.server.settings import Settings
from registry.server.storage.blobs import BlobStore
from registry.server.webhooks import dispatch

from . import output
from .lane import DirectProtocol

GRACE_SECONDS = 30
BACKLOG = 2048
GARBAGE_THRESHOLD = 10_000
"""A look at so many new objects takes 3 ms, in which nobody is answered. Python's 700 looks within every request."""
FOLLOWER_SECONDS = 10.0


@click.command()
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free port.")
@click.option("--data", type=click.Path(file_okay=False), help="Folder of the SQLite file and the blobs.")
@output.json_option
def serve(host: str, port: int, data: str | None) -> None:
    """Run the registry server. REGISTRY_… variables set everything else.

    An empty database is initialized, and the first administrator's token is printed once. An old schema is rejected
    until `adapter migrate`.
    """
    settings = _settings(data)
    engine = open_database(settings)
    schema.prepare(engine)
    app = create_app(settings, engine=engine)
    gc.freeze()  # what is loaded by now stays; a request makes so many objects that the default looks far too often
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
    listener = _listen(host, port)
    config = uvicorn.Config(
        app,
        http=DirectProtocol,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        backlog=BACKLOG,
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after its orderly end; then it must not kill us.
        signal.signal(number, lambda *_: None)
    as_json = output.as_json()
    fresh, log = app.state.freshness, app.state.audit_log
    follower = threading.Thread(target=log.run, args=(fresh.for_thread().stamp,), name="audit", daemon=True)

    def ready() -> None:  # the first token is made when somebody is sure to see it
        _announce(listener, settings, tokens.create_first_token(engine), as_json)
        follower.start()
        sending = (engine, settings, lambda: log.keys, log.closing, fresh.for_thread().stamp)
        threading.Thread(target=dispatch.run, args=sending, name="webhooks", daemon=True).start()
        threading.Thread(target=fresh.run, args=(log.closing,), name="freshness", daemon=True).start()
        reevaluation = (engine, app.state.blobs, settings)
        threading.Thread(target=_reevaluate, args=reevaluation, name="reevaluation", daemon=True).start()

    _Server(config, ready, app.state.audit_log.closing).run(sockets=[listener])
    if follower.is_alive():
        follower.join(FOLLOWER_SECONDS)
    engine.dispose()


def _settings(data: str | None) -> Settings:
    return Settings.from_env({**os.environ, "REGISTRY_DATA": data} if data else None)


def _reevaluate(engine: Engine, blobs: BlobStore, settings: Settings) -> None:
    """Evaluate versions again if the engines' rules have changed, unless another server is doing so."""
    with contextlib.suppress(Unavailable):
        reevaluate.evaluate_again(engine, blobs, engine_compat.parse_setting(settings.engines))


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as e:
        listener.close()
        raise OSError(e.errno, f"cannot listen on {host} port {port}: {e.strerror}") from e
    return listener


class _Server(uvicorn.Server):
    """Says so when it is ready to answer, and when it ends, so that nobody waits for events any longer."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], closing: threading.Event) -> None:
        super().__init__(config)
        self._announce, self._closing = announce, closing

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._closing.set()
        await super().shutdown(sockets)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def _announce(listener: socket.socket, settings: Settings, secret: str | None, as_json: bool) -> None:
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if as_json:
        click.echo(json.dumps({"url": url, "token": secret or ""}))
        return
    if secret:
        click.echo("This is the first start. The administrator's token, shown once:\n")
        click.echo(f"    {secret}\n")
        click.echo(f"    export ADAPTER_REGISTRY={url} ADAPTER_TOKEN={secret}\n")
    click.echo(f"The registry answers at {url} with {settings.database_url.partition(':')[0]} and {settings.blobs}")


@click.command()
@click.option("--data", type=click.Path(file_okay=False), help="Folder of the SQLite file.")
@output.json_option
def migrate(data: str | None) -> None:
    """Upgrade the database schema. Make a backup first; servers may keep running."""
    engine = open_database(_settings(data))
    before = schema.revision_of(engine)
    after = schema.migrate(engine)
    engine.dispose()
    message = f"The schema is at {after}" + ("." if before == after else f"; it was at {before or 'none'}.")
    output.answer({"before": before, "after": after}, lambda: click.echo(message))


@contextmanager
def embedded() -> Iterator[FastAPI]:
    """The application on the user's own data folder; whoever may read the folder may do everything."""
    settings = Settings.from_env()
    engine = open_database(settings)
    try:
        schema.prepare(engine)
        app = create_app(settings, engine=engine, trusted=actors.TRUSTED)
        yield app
        app.state.audit_log.flush()
    finally:
        engine.dispose()  # the last connection that closes folds SQLite's WAL into the file
