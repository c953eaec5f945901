"""`adapter rejudge`: have the registry judge stored versions again where an engine's rules are newer than the verdict.

Invariants
- Reads no weights, here or there; what is up to date is left as it is, so running it twice costs nothing.

Example
    $ adapter rejudge
    10000 versions looked at, 2000 verdicts written
"""

from __future__ import annotations

import click

from cli import output, session
from registry.wire.verdicts import RejudgeRequest


@click.command()
@output.json_option
def rejudge() -> None:
    """Renew the verdicts of the engines that the server keeps them for (REGISTRY_ENGINES). For administrators."""
    looked = renewed = 0
    cursor, more = "", True
    with session.registry() as registry:
        while more:
            page = registry.rejudge(RejudgeRequest(cursor=cursor))
            looked, renewed, cursor = looked + page.looked, renewed + page.renewed, page.next_cursor
            more = bool(cursor)
    sentence = f"{output.plural(looked, 'version')} looked at, {output.plural(renewed, 'verdict')} written"
    output.answer({"looked": looked, "renewed": renewed}, lambda: click.echo(sentence))
