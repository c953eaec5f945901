"""`adapter rejudge`: have the registry judge stored versions again where an engine's rules are newer than the verdict.

Invariants
- Reads no weights, here or there; what is up to date is left as it is, so running it twice costs nothing.
- Headers are read again only of versions whose facts an older release kept.
"""

from __future__ import annotations

import click

from cli import output, session
from registry.api.verdicts import RejudgeRequest


@click.command()
@output.json_option
def rejudge() -> None:
    """Renew the stored engine verdicts after engine rules changed. For administrators.

    A server does this when it starts. No weights are read.
    """
    looked = analysed = renewed = 0
    cursor, more = "", True
    with session.registry() as registry:
        while more:
            page = registry.rejudge(RejudgeRequest(cursor=cursor))
            looked, analysed, renewed = looked + page.looked, analysed + page.analysed, renewed + page.renewed
            cursor = page.next_cursor
            more = bool(cursor)
    again = f"{output.plural(analysed, 'header')} read again, " if analysed else ""
    message = f"{output.plural(looked, 'version')} looked at, {again}{output.plural(renewed, 'verdict')} written"
    output.answer({"looked": looked, "analysed": analysed, "renewed": renewed}, lambda: click.echo(message))
