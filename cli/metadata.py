"""`adapter tag …` and `adapter describe`: what can change about an adapter or a version after the push.

Annotations and declared inputs are sealed in a version's digest; tags, description and links are not, and the audit log
keeps each change of them.
"""

from __future__ import annotations

from typing import Any

import click

from registry.api.catalog import AdapterView, MetadataChange, VersionView
from registry.client.core import Versions
from registry.names import AdapterName, Ref

from . import arguments, output, session, versions

Subject = AdapterName | Ref


@click.group()
def tag() -> None:
    """Tags of an adapter (NAME) or a version (NAME@3, NAME:alias): add, remove, list.

    Tags can change; the audit log keeps each change. `push --annotation` seals a label in the digest instead.
    """


@tag.command()
@click.argument("subject", type=arguments.SUBJECT)
@click.argument("tags", nargs=-1, required=True, metavar="KEY[=VALUE]...")
def add(subject: Subject, tags: tuple[str, ...]) -> None:
    """Add tags to SUBJECT, or change their values.

    \b
    adapter tag add acme/support team=nlp
    adapter tag add acme/support@3 reviewed
    """
    _change(subject, MetadataChange(tags={**arguments.tags(tags)}))


@tag.command()
@click.argument("subject", type=arguments.SUBJECT)
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
def remove(subject: Subject, keys: tuple[str, ...]) -> None:
    """Remove tags from SUBJECT by their keys."""
    _change(subject, MetadataChange(tags=dict.fromkeys(keys)))


@tag.command("list")
@click.argument("subject", type=arguments.SUBJECT)
def list_tags(subject: Subject) -> None:
    """List the tags of SUBJECT."""
    _print(subject, _read)


@click.command()
@click.argument("subject", type=arguments.SUBJECT)
@click.argument("text", required=False)
@click.option("--link", "links", multiple=True, metavar="NAME=URL", help="Page about it (repeatable).")
@click.option("--remove-link", "removed", multiple=True, metavar="NAME", help="Remove a link (repeatable).")
def describe(subject: Subject, text: str | None, links: tuple[str, ...], removed: tuple[str, ...]) -> None:
    """Set the description of an adapter (NAME) or a version (NAME@3), or print it. An empty TEXT removes it.

    \b
    adapter describe acme/support 'Answers about returns' --link dashboard=https://wandb.example/acme
    """
    if text is None and not links and not removed:
        _print(subject, _read)
        return
    new_links = {**dict.fromkeys(removed), **arguments.pairs(links, "--link", "NAME=URL")}
    _change(subject, MetadataChange(description=text, links=new_links))


def _change(subject: Subject, change: MetadataChange) -> None:
    _print(
        subject,
        lambda registry, subject: (
            registry.describe(subject, change)
            if isinstance(subject, Ref)
            else registry.describe_adapter(subject, change)
        ),
    )


def _read(registry: Versions, subject: Subject) -> AdapterView | VersionView:
    return registry.version(subject) if isinstance(subject, Ref) else registry.adapter(subject)


def _print(subject: Subject, request: Any) -> None:
    with session.versions() as registry:
        view: AdapterView | VersionView = request(registry, subject)
    title = f"{view.name}@{view.number}" if isinstance(view, VersionView) else view.name
    document = {
        "subject": title, "description": view.description, "tags": view.tags, "links": view.links,
    }  # fmt: skip

    def text() -> None:
        rows = versions.metadata_rows(view)
        output.line(output.strong(title) + ("" if rows else "  no description, tags or links"))
        output.facts(rows)

    output.answer(document, text)
