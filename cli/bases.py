"""`adapter base add`, `identify`, `list`, `show`, `alias`, `delete` and `thresholds`.

A base is described by its config.json and safetensors headers. Its weights are read only by `identify` and never sent.
"""

import os
from collections import Counter
from collections.abc import Callable

import click

from registry import lazy, names
from registry.api.bases import BaseAdd, BaseView
from registry.bases import BaseMatch, BaseSpec
from registry.bases.identity import Identity
from registry.client.local import base_folder
from registry.errors import Invalid
from registry.evaluation.thresholds import Thresholds
from registry.worker.model import identify as weights_identity
from registry.worker.model.weights import Weights

from .console import arguments, output, session, tables
from .console.options import Group
from .console.progress import ProgressLine
from .console.tables import Column, Table

UNRELATED_SHOWN = 10


@click.group(cls=Group)
def base() -> None:
    """Base models: add, list, show, alias, delete, identify, thresholds."""


@base.command()
@click.argument("name")
@click.argument("source")
@click.option("--identify", is_flag=True, help="Also read the weights, to compare bases (needs the extra 'worker').")
def add(name: str, source: str, identify: bool) -> None:
    """Register the base NAME from the folder SOURCE.

    SOURCE holds config.json and *.safetensors, or a diffusers pipeline.

    Reads the configuration and headers, not the weights.
    """
    name = names.base_name(name)
    spec, bytes_read = base_folder.base_spec_from(source, name)
    identity = _identity(source) if identify else None
    origin = os.path.abspath(source) if os.path.isdir(source) else source
    with session.registry() as registry:
        added = registry.add_base(BaseAdd(spec=spec, identity=identity, source=origin))

    def text() -> None:
        _print_base(added)
        if identity is not None:
            return
        weights = f" of {output.size(spec.weights_bytes)}" if spec.weights_bytes else ""
        output.line(output.faint(f"  read {output.size(bytes_read)}{weights} of weights: only the headers"))

    output.result(added, text)
    session.note_embedded()


@base.command("identify")
@click.argument("name")
@click.argument("folder", metavar="DIR")
def identify_base(name: str, folder: str) -> None:
    """Record the weights in DIR as those of the base NAME.

    A worker does this when it first uses a base. Afterwards, other weights under the same name are rejected.
    """
    name = names.base_name(name)
    spec, _ = base_folder.base_spec_from(folder, name)
    with session.registry() as registry:
        view = registry.base(name)
        if view.fingerprint != spec.fingerprint:
            difference = f"its fingerprint is {spec.fingerprint}, not {view.fingerprint}"
            raise Invalid("BASE_INVALID", f"{folder} is not the base {name}: {difference}")
        identified = registry.identify_base(name, _identity(folder))
    output.result(identified, lambda: _print_base(identified))


def _identity(folder: str) -> Identity:
    if not weights_identity.is_possible():
        otherwise = "; or leave it to a worker, which does it when it first uses the base"
        raise lazy.missing_extra("reading weights", "worker", "torch", otherwise)
    with ProgressLine(f"reading {folder}") as progress:
        progress.start(Weights.of(folder).size_bytes)
        return weights_identity.identify(folder, progress.advance)


NO_BASES = "No bases. Register one: adapter base add NAME FOLDER"
BASES: Table[BaseView] = Table((
    Column("name", lambda item: item.name, lambda item: output.strong(item.name)),
    Column("architecture", lambda item: item.spec.architecture or item.spec.model_type),
    Column("parameters", lambda item: item.spec.parameters, lambda item: output.amount(item.spec.parameters)),
    Column("weights", lambda item: item.spec.quantization or item.spec.dtype),
    Column("adapters", lambda item: item.adapters),
    Column("source", lambda item: item.source, flows=True),
), empty=NO_BASES)  # fmt: skip


@base.command("list")
@tables.prints(BASES)
def list_bases() -> None:
    """List the registered bases."""
    with session.registry() as registry:
        BASES.print(registry.bases().items, empty=session.about_embedded() + NO_BASES)


@base.group()
def alias() -> None:
    """Other names of a base: add, delete. For administrators."""


@alias.command("add")
@click.argument("name")
@click.argument("other_name", metavar="ALIAS")
@arguments.reason
def add_alias(name: str, other_name: str, reason: str) -> None:
    """Give the base NAME another name, such as its name on the Hugging Face Hub."""
    _set_aliases(name, reason, lambda aliases: aliases | {other_name})


@alias.command("delete")
@click.argument("name")
@click.argument("other_name", metavar="ALIAS")
@arguments.reason
def delete_alias(name: str, other_name: str, reason: str) -> None:
    """Take another name away from the base NAME."""
    _set_aliases(name, reason, lambda aliases: aliases - {other_name})


def _set_aliases(name: str, reason: str, change: Callable[[set[str]], set[str]]) -> None:
    with session.registry() as registry:
        view = registry.set_base_aliases(name, sorted(change(set(registry.base(name).aliases))), reason)
    output.result(view, lambda: _print_base(view))


@base.command()
@click.argument("name")
@arguments.reason
def delete(name: str, reason: str) -> None:
    """Delete the base NAME. Fails if a version or a waiting job refers to it."""
    session.print_response(
        lambda registry: registry.delete_base(name, reason), lambda deleted: output.line(f"Deleted {deleted.name}")
    )


@base.command()
@click.argument("name")
def show(name: str) -> None:
    """Show a base and how other bases relate to it."""
    session.print_response(lambda registry: registry.base(name), _print_base)


THRESHOLDS: Table[tuple[str, float, str]] = Table((
    Column("field", lambda row: row[0]),
    Column("number", lambda row: row[1], lambda row: f"{row[1]:g}"),
    Column("set by", lambda row: row[2]),
))  # fmt: skip


@base.command()
@click.argument("name")
@click.argument("values", nargs=-1, metavar="[FIELD=NUMBER]...")
@click.option("--reset", is_flag=True, help="Reset all other thresholds to the defaults.")
@tables.prints(THRESHOLDS)
def thresholds(name: str, values: tuple[str, ...], reset: bool) -> None:
    """Show the smoke test thresholds of the base NAME, or set some. Setting is for administrators."""
    overrides = dict(_threshold(text) for text in values)
    Thresholds.with_overrides(overrides)
    with session.registry() as registry:
        view = registry.base(name)
        if overrides or reset:
            view = registry.set_thresholds(name, overrides if reset else view.thresholds | overrides)
    own = view.thresholds
    numbers: dict[str, float] = Thresholds.with_overrides(own).model_dump()
    rows = [(field, number, "this base" if field in own else "default") for field, number in numbers.items()]
    THRESHOLDS.print(rows, document=view)


def _threshold(text: str) -> tuple[str, float]:
    field, _, number = text.partition("=")
    try:
        return field, float(number)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not FIELD=NUMBER", param_hint="FIELD=NUMBER") from None


def _print_base(view: BaseView) -> None:
    spec = view.spec
    output.line(f"{output.strong(view.name)}  {output.faint(view.fingerprint)}")
    prints = spec.fingerprints
    output.facts(
        [
            ("model", f"{spec.architecture or spec.model_type}, {output.amount(spec.parameters)} parameters"),
            ("aliases", ", ".join(view.aliases)),
            ("parts", ", ".join(spec.components)),
            ("sizes", _sizes(spec)),
            ("weights", ", ".join(filter(None, [spec.dtype, spec.quantization, output.size(spec.weights_bytes)]))),
            ("modules", _module_counts(spec)),
            ("exact", str(prints.exact or "")),
            ("tokenizer", str(prints.tokenizer or "")),
            ("template", str(prints.template or "")),
            ("thresholds", ", ".join(f"{field} = {number:g}" for field, number in view.thresholds.items())),
            ("source", view.source),
            ("fused from", ", ".join(edge.name or str(edge.digest) for edge in view.parents)),
            ("adapters", str(view.adapters)),
            ("added", f"{output.moment(view.created_at)} by {view.created_by}"),
        ]
    )
    closest_first = list(BaseMatch)
    in_one_line: dict[str, list[str]] = {}
    for relative in sorted(view.relatives, key=lambda relative: closest_first.index(relative.match)):
        if relative.match is BaseMatch.UNRELATED:
            in_one_line.setdefault("unrelated", []).append(relative.other)
        elif relative.match is BaseMatch.UNKNOWN and not relative.compared:  # there may be thousands
            in_one_line.setdefault("unknown", []).append(relative.other)
        else:
            output.line(f"  {relative.match:<12} {output.strong(relative.other)} {relative.message}")
    for match, others in in_one_line.items():
        output.line(output.faint(f"  {match:<12} {output.some(others, UNRELATED_SHOWN)}"))


def _sizes(spec: BaseSpec) -> str:
    if spec.is_pipeline:
        return ""
    heads = f"{spec.heads} heads" + (f" ({spec.kv_heads} for keys)" if spec.kv_heads not in (0, spec.heads) else "")
    parts = [f"{spec.layers} layers", f"width {spec.hidden}", heads, f"vocabulary {spec.vocab}"]
    return ", ".join(parts) + (", tied" if spec.tied else "")


def _module_counts(spec: BaseSpec) -> str:
    counted = Counter(module.kind for module in spec.modules.values())
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())
