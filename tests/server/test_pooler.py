"""pgbouncer in transaction mode between server and PostgreSQL: it works, or the server does not start and says why."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest
from sqlalchemy import Engine, create_engine, make_url, text

from registry.errors import Invalid, Unavailable
from registry.server.database import locks, schema
from registry.server.database.engine import SESSION_SETTINGS, open_database
from registry.server.settings import Settings
from tests import processes, services
from tests.harness import Harness
from tests.memory_blobs import MemoryBlobs

PROGRAM = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = [
    pytest.mark.security,
    pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed"),
]
CONFIG = """\
[databases]
{name} = host={host} port={port} user={user}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {listen}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 2
max_prepared_statements = 200
{ignored}
"""


@pytest.fixture
def direct_url(postgres_server: str) -> Iterator[str]:
    with services.fresh_database(postgres_server) as url:
        yield url


@pytest.fixture
def pooled(direct_url: str) -> Iterator[Callable[[str], str]]:
    """Start pgbouncer in front of the database, with this line in its configuration; return the URL."""
    with ExitStack() as stack:

        def start(ignored: str) -> str:
            url = make_url(direct_url)
            folder = stack.enter_context(processes.folder("registry-pgbouncer-"))
            user = services.unprivileged_user(folder)
            listen = processes.free_port()
            config = folder / "pgbouncer.ini"
            config.write_text(
                CONFIG.format(
                    name=url.database, host=url.host, port=url.port, user=url.username, listen=listen, ignored=ignored
                )
            )
            process = stack.enter_context(processes.running([PROGRAM, config], folder, stop=signal.SIGINT, **user))
            pooled_url = url.set(host="127.0.0.1", port=listen)
            engine = create_engine(pooled_url)
            processes.wait_until(lambda: _responds(engine), process, folder)
            engine.dispose()
            return pooled_url.render_as_string(hide_password=False)

        yield start


def _responds(engine: Engine) -> bool:
    try:
        with engine.connect():
            return True
    except Exception:  # not yet
        return False


def test_a_pooler_that_rejects_the_options_is_named(pooled: Callable[[str], str]) -> None:
    engine = open_database(Settings(database_url=pooled("")))
    with pytest.raises(Invalid, match="pooler rejects") as refusal:
        schema.prepare(engine)
    assert "ignore_startup_parameters" in refusal.value.next_step
    engine.dispose()


def test_a_pooler_that_drops_the_options_is_refused_until_the_role_has_them(
    pooled: Callable[[str], str], direct_url: str
) -> None:
    url = pooled("ignore_startup_parameters = options")
    engine = open_database(Settings(database_url=url))
    with pytest.raises(Invalid, match="statement_timeout") as refusal:
        schema.prepare(engine)
    assert 'ALTER ROLE "postgres" SET idle_in_transaction_session_timeout = 10000' in refusal.value.next_step
    engine.dispose()
    direct = create_engine(direct_url)
    with direct.begin() as connection:
        for name, value in SESSION_SETTINGS.items():
            connection.execute(text(f"ALTER DATABASE \"{make_url(direct_url).database}\" SET {name} = '{value}'"))
    direct.dispose()
    url = pooled("ignore_startup_parameters = options")  # the sessions of the first pooler began without them
    blobs = MemoryBlobs()
    with Harness(url, blobs=blobs) as first, Harness(url, blobs=blobs) as second:
        first.add_base()
        for number in range(8):  # enough for prepared statements
            first.push("acme/support", first.files(seed=number))
            assert second.client(first.secret).version("acme/support").number == number + 1
        with locks.acquire(first.engine, "gc"), pytest.raises(Unavailable), locks.acquire(second.engine, "gc"):
            pass
        with locks.acquire(second.engine, "gc") as lock:
            lock.check()
        first.app.state.audit_log.step()
        assert first.app.state.audit_log.latest.size > 8
