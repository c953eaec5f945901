"""`adapter serve` and `adapter migrate`.

The first administrator's token is printed once, at the first start, unless a file or a hash sets it; only its hash is
stored. SIGTERM and Ctrl-C let running requests end, then exit 0; SIGHUP reads the issuers
and the audit key again.
"""

import asyncio
import gc
import ipaddress
import json
import logging
import os
import re
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import click

from registry import __version__
from registry.errors import Invalid
from registry.filesystem import replace_file
from registry.server.access import tokens
from registry.server.access.issuers import Issuers
from registry.server.app import create_app
from registry.server.database import schema
from registry.server.database.engine import Engine, explain_failure, open_database
from registry.server.http.request_log import SHARED_FOLDER_VARIABLE
from registry.server.http.server import HttpServer, listen
from registry.server.http.services import Services, services_of
from registry.server.maintenance import reevaluate
from registry.server.settings import Settings
from registry.server.storage.open import try_store
from registry.server.storage.signed_links import SECRET_PURPOSE, LinkSigner
from registry.server.webhooks import dispatch
from registry.token_secret import is_well_formed, new_secret, sha256_of

from ..console import logs, output
from ..console.options import Command
from .config import CONFIG_OPTION, environment
from .processes import run_processes

GARBAGE_THRESHOLD = 10_000
"""A collection at this threshold takes 3 ms. Python's default of 700 collects within every request."""
SEQUENCER_SECONDS = 10.0
IF_LOST = (
    "If it is lost, create one here, with the settings of this server: "
    "ADAPTER_REGISTRY=embedded adapter token create NAME --scope admin"
)
_LOG = logging.getLogger("registry.server")


@click.command(cls=Command)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0 picks a free port.")
@click.option("--data", type=click.Path(file_okay=False), help="Folder of the SQLite file and the blobs.")
@CONFIG_OPTION
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Server processes that share the port. More than one requires PostgreSQL.")  # fmt: skip
@click.option("--admin-token-file", "token_file", type=click.Path(dir_okay=False, path_type=Path),
              help="File of the first administrator's token, written at the first start if absent.")  # fmt: skip
def serve(
    host: str, port: int, data: str | None, config: str | None, workers: int, token_file: Path | None
) -> None:  # fmt: skip
    """Run the registry server. REGISTRY_… variables, or a file of them, set everything else.

    An empty database is initialized, and the first administrator's token is printed once, unless it comes from
    --admin-token-file or REGISTRY_ADMIN_TOKEN_SHA256. An old schema is rejected until `adapter migrate`.
    """
    settings = _settings(data, config)
    logs.configure(settings.log, settings.log_level, variables=("REGISTRY_LOG", "REGISTRY_LOG_LEVEL"))
    if workers > 1 and settings.database_url.startswith("sqlite:"):
        raise Invalid("SETTING_INVALID", "--workers: SQLite serves one process", next_step="use PostgreSQL")
    engine = open_database(settings)
    with explain_failure(engine):
        schema.prepare(engine)
        has_tokens = tokens.has_tokens(engine)
    first_token = ("", "") if has_tokens else _first_token(settings, token_file)
    listener = listen(host, port)
    if workers == 1:
        _serve(settings, engine, listener, first_token)
        return
    engine.dispose()  # a connection must not be used by two processes

    def work(number: int, ready: Callable[[], None]) -> None:
        _serve(settings, engine, listener, first_token, announces=number == 0, on_ready=ready)

    parent, folder = os.getpid(), tempfile.mkdtemp(prefix="adapter-metrics-")
    os.environ[SHARED_FOLDER_VARIABLE] = folder
    code = run_processes(workers, work)
    if os.getpid() == parent:
        shutil.rmtree(folder, ignore_errors=True)
    output.exit_with(code)


def _serve(
    settings: Settings, engine: Engine, listener: socket.socket, first_token: tuple[str, str], *,
    announces: bool = True, on_ready: Callable[[], None] = lambda: None,
) -> None:  # fmt: skip
    """Serve until a signal. `first_token`: hash and secret of the token to create if there is none."""
    token_sha256, secret = first_token
    app = create_app(settings, engine=engine)
    services = services_of(app)
    log = services.audit_log
    services.blobs.links = LinkSigner(lambda: log.keys.derive_current_secret(SECRET_PURPOSE))
    if problem := try_store(services.blobs, settings.blobs):
        output.line(output.styled(problem, "yellow"), err=True)
    with explain_failure(engine):  # last: the key of a server that starts for nothing does not become that of the log
        log.claim()
    gc.freeze()  # modules stay alive, so the collector need not traverse them
    gc.set_threshold(GARBAGE_THRESHOLD, 20, 50)
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again after its shutdown; then it must not kill this process.
        signal.signal(number, lambda *_: None)
    is_document = output.is_document()
    freshness = services.freshness
    sequencer = threading.Thread(target=log.run, args=(freshness.for_thread().stamp,), name="audit", daemon=True)

    def ready() -> None:  # the first token is created once the server is sure to run
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, services)
        created = bool(token_sha256) and tokens.create_first_token(engine, token_sha256)
        if announces:
            _announce(listener, services, secret if created else "", is_document, has_tokens=not token_sha256)
        on_ready()
        started = {"version": __version__, "database": engine.dialect.name, "blobs": services.blobs.kind}
        _LOG.info("started", extra={"fields": started})
        sequencer.start()
        dispatcher = (engine, settings, lambda: log.keys, log.closing, freshness.for_thread().stamp)
        threading.Thread(target=dispatch.run, args=dispatcher, name="webhooks", daemon=True).start()
        threading.Thread(target=freshness.run, args=(log.closing,), name="freshness", daemon=True).start()
        reevaluation = (engine, services.blobs, settings)
        threading.Thread(target=reevaluate.evaluate_after, args=reevaluation, name="reevaluation", daemon=True).start()

    proxies = settings.trusted_proxies
    HttpServer(app, trusted_proxies=proxies, on_start=ready, on_stop=log.closing.set).run(sockets=[listener])
    if sequencer.is_alive():
        sequencer.join(SEQUENCER_SECONDS)
    _LOG.info("stopped")
    engine.dispose()


def _first_token(settings: Settings, file: Path | None) -> tuple[str, str]:
    """The hash of the first administrator's token, and its secret if it has to be printed."""
    if settings.admin_token_sha256:
        if not re.fullmatch("[0-9a-f]{64}", settings.admin_token_sha256):
            raise Invalid("SETTING_INVALID", "REGISTRY_ADMIN_TOKEN_SHA256 is not a SHA-256 in lower-case hex")
        return settings.admin_token_sha256, ""
    if file is None:
        secret = new_secret()
        return sha256_of(secret), secret
    if file.exists():
        secret = file.read_text(errors="replace").strip()
        if not is_well_formed(secret):
            next_step = "`adapter token generate` prints a token, or let `adapter serve` write the file"
            raise Invalid("SETTING_INVALID", f"{file} does not contain a token", next_step=next_step)
    else:
        secret = new_secret()
        replace_file(file, f"{secret}\n".encode(), mode=0o600)
    return sha256_of(secret), ""


def _settings(data: str | None, config: str | None) -> Settings:
    return Settings.from_env(environment(config=config, data=data))


def _reload(services: Services) -> None:
    """Read the issuers and the audit key again; what is wrong stays as it was. Trusted roots are read at each use."""
    try:
        services.issuers = Issuers.read(services.settings.issuers)
        services.audit_log.reload_keys()
    except Invalid as e:
        output.line(f"SIGHUP: the former settings stay: {e.detail}", err=True)
    else:
        output.line("SIGHUP: read the issuers and the audit key again", err=True)


def _announce(listener: socket.socket, services: Services, secret: str, is_document: bool, *, has_tokens: bool) -> None:
    settings = services.settings
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    is_embedded = ipaddress.ip_address(host).is_loopback and settings.database_url.startswith("sqlite:")
    is_read = is_document or sys.stdout.isatty()  # else it is a log, whose readers would be administrators
    has_link = is_embedded and is_read and settings.pages != "off"
    link = f"{url}/sign-in/{services.sign_in_links.create()}" if has_link else ""
    if is_document:
        click.echo(json.dumps({"url": url, "token": secret, "sign_in_url": link}))
        return
    if has_tokens:
        output.line(f"This registry has tokens, so this start creates none. {IF_LOST}")
    if secret:
        for text in ("First start. The administrator's token, shown only now:", "", f"    {secret}", ""):
            output.line(text)
        output.line(f"    export ADAPTER_REGISTRY={url} ADAPTER_TOKEN={secret}")
        output.line()
    output.line(f"The registry listens at {url} with {settings.database_url.partition(':')[0]} and {settings.blobs}")
    if link:
        output.line("To sign in to its pages once, within ten minutes, open:")
        output.line(f"    {link}")


@click.command(cls=Command)
@click.option("--data", type=click.Path(file_okay=False), help="Folder of the SQLite file.")
@CONFIG_OPTION
def migrate(data: str | None, config: str | None) -> None:
    """Upgrade the database schema. Make a backup first; servers may keep running."""
    engine = open_database(_settings(data, config))
    with explain_failure(engine):
        before = schema.revision_of(engine)
    after = schema.migrate(engine)
    engine.dispose()
    message = f"The schema is at {after}" + ("." if before == after else f"; it was at {before or 'none'}.")
    output.result({"before": before, "after": after}, lambda: output.line(message))
