"""`adapter audit-key rotate` and `replace`: change the key of the audit log, on the machine where the key file is.

The public keys are shown by `adapter audit key`, to everyone who has a token.
"""

import click

from registry.errors import Conflict, Invalid
from registry.server.audit import keys, sequencer
from registry.server.database import db
from registry.server.database.engine import explain_failure, open_database
from registry.server.settings import Settings
from registry.tlog.notes import Signer

from ..console import output
from ..console.options import Group
from .config import environment

DATA_OPTION = click.option("--data", type=click.Path(file_okay=False), help="Data folder of the server.")
_ROTATE = "`adapter audit-key rotate` changes a key that is there"


@click.group("audit-key", cls=Group)
def audit_key() -> None:
    """Change the key that signs the audit log, on the server's machine."""


@audit_key.command()
@DATA_OPTION
def rotate(data: str | None) -> None:
    """Add a new key that signs from now on.

    Clients accept it, because the old key signs the new one.

    Copy the key file to every server, then send each SIGHUP or restart it.
    """
    settings = _settings(data)
    new = keys.rotate_key(settings)
    _print_new_key(settings, new, "copy the file to every server of this registry, then send each SIGHUP")


@audit_key.command()
@DATA_OPTION
@click.option("--reason", required=True, help="Why the key is replaced (public).")
def replace(data: str | None, reason: str) -> None:
    """Replace a lost key. The log continues and records the new key and the reason.

    The old key does not sign the new one: users must compare it with the one that you publish, and trust it once.
    """
    settings = _settings(data)
    engine = open_database(settings)
    with explain_failure(engine), db.session(engine, write=False) as session:
        checkpoint = sequencer.latest_checkpoint(session)
        if checkpoint is None:
            next_step = _ROTATE if keys.key_path(settings).exists() else "start the server, which makes a key"
            raise Conflict("KEY_NOT_LOST", "no key has signed a checkpoint of this log yet", next_step=next_step)
        try:
            sequencer.require_same_log(session, keys.load_keys(settings, may_create=False))
        except Invalid:
            origin = checkpoint.note.partition("\n")[0]
        else:
            raise Conflict("KEY_NOT_LOST", f"{keys.key_path(settings)} is the key of this log", next_step=_ROTATE)
    new = keys.replace_key(settings, origin)
    sequencer.record_replacement(engine, new.verifier.text, reason)
    engine.dispose()
    _print_new_key(settings, new, "copy the file to every server, start them, and publish the key to your users")


def _settings(data: str | None) -> Settings:
    return Settings.from_env(environment(config=None, data=data))


def _print_new_key(settings: Settings, new: Signer, next_step: str) -> None:
    path, verifier = keys.key_path(settings), new.verifier.text

    def text() -> None:
        output.line(verifier)
        output.note(f"saved in {path}; {next_step}")

    output.result({"key": verifier, "path": str(path)}, text)
