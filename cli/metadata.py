"""`adapter tag …` and `adapter describe`: what can change about an adapter or a version after the push.

Annotations and declared inputs are sealed in a version's digest; tags, description and links are not, and the audit log
keeps each change of them.
"""

from collections.abc import Callable
from typing import Any

import click

from registry.api.aliases import DescribedSubject, DescribeItem
from registry.api.catalog import AdapterView, MetadataChange, VersionView
from registry.client.aliases import Groups
from registry.client.core import Versions
from registry.names import AdapterName, Ref

from .console import arguments, groups, output, session, versions
from .console.options import Command, Group

Subject = AdapterName | Ref


@click.group(cls=Group)
def tag() -> None:
    """Tags of an adapter (NAME) or a version (NAME@3, NAME:alias): add, delete, list.

    Tags can change; the audit log keeps each change. `push --annotation` seals a label in the digest instead.
    """


_OF_GROUP = click.option("--alias", default="", metavar="ALIAS", help="With --namespace: the versions at this alias.")


@tag.command()
@click.argument("words", nargs=-1, required=True, metavar="[NAME|REF] KEY[=VALUE]...")
@_OF_GROUP
@groups.options
def add(words: tuple[str, ...], alias: str, **group: Any) -> None:
    """Add or change tags of an adapter (NAME) or a version (REF).

    With --namespace and without NAME|REF, many adapters change: a plan is shown first.
    """
    _tag(words, alias, groups.Options(**group), lambda texts: {**arguments.tags(texts)})


@tag.command()
@click.argument("words", nargs=-1, required=True, metavar="[NAME|REF] KEY...")
@_OF_GROUP
@groups.options
def delete(words: tuple[str, ...], alias: str, **group: Any) -> None:
    """Delete tags of an adapter (NAME) or a version (REF) by their keys.

    With --namespace and without NAME|REF, many adapters change: a plan is shown first.
    """
    _tag(words, alias, groups.Options(**group), dict.fromkeys)


def _tag(
    words: tuple[str, ...], alias: str, options: groups.Options,
    parse: Callable[[tuple[str, ...]], dict[str, str | None]],
) -> None:  # fmt: skip
    if not options.namespace:
        options.require_none()
        if alias or len(words) < 2:
            raise click.UsageError("give NAME or REF and a tag, or --namespace")
        _change(arguments.parse_subject(words[0]), MetadataChange(tags=parse(words[1:])))
        return
    mark = f":{alias}" if alias else ""
    with session.registry() as registry:
        views = groups.select(registry, options, alias)
        items = [DescribeItem(subject=f"{view.name}{mark}", tags=parse(words)) for view in views]
        changes = Groups(registry)
        work = groups.Work("subject", "changed", changes, changes.change_metadata, pin_metadata, describe_metadata)
        groups.run(work, items, options)


def pin_metadata(item: DescribeItem, planned: DescribedSubject) -> DescribeItem | None:
    """The change of the version in the plan; None if it would change nothing."""
    return item.model_copy(update={"subject": planned.subject}) if planned.changed else None


def describe_metadata(item: DescribeItem, described: DescribedSubject | None) -> tuple[str, str]:
    """The subject, and its tags after the change."""
    if described is None:
        return item.subject, " ".join(sorted(item.tags))
    return described.subject, " ".join(versions.tag_texts(described.tags))


@tag.command("list")
@click.argument("subject", type=arguments.SUBJECT, metavar="NAME|REF")
def list_tags(subject: Subject) -> None:
    """List the tags of an adapter (NAME) or a version (REF)."""
    _print(subject, _read)


@click.command(cls=Command)
@click.argument("subject", type=arguments.SUBJECT, metavar="NAME|REF")
@click.argument("text", required=False)
@click.option("--link", "links", multiple=True, metavar="NAME=URL", help="Page about it (repeatable).")
@click.option("--delete-link", "deleted", multiple=True, metavar="NAME", help="Delete a link (repeatable).")
def describe(subject: Subject, text: str | None, links: tuple[str, ...], deleted: tuple[str, ...]) -> None:
    """Set or print the description of an adapter (NAME) or a version (REF). An empty TEXT deletes it."""
    if text is None and not links and not deleted:
        _print(subject, _read)
        return
    new_links = {**dict.fromkeys(deleted), **arguments.pairs(links, "--link", "NAME=URL")}
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

    output.result(document, text)
