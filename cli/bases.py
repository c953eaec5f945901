"""Base models: `adapter base add`, `list`, `show`.

Invariants
- A base is described from its config.json and its safetensors headers; its weights are never read or sent.

Example
    $ adapter base add smollm2 models/SmolLM2-135M-Instruct
"""

from __future__ import annotations

import os
from collections import Counter

import click

from cli import output, session
from registry import names
from registry.bases import BaseSpec
from registry.client import transfer
from registry.wire import BaseAdd, BaseView


@click.group()
def base() -> None:
    """Base models: what adapters are made for."""


@base.command()
@click.argument("name")
@click.argument("source")
@output.json_option
def add(name: str, source: str) -> None:
    """Register the base NAME from SOURCE, a folder with config.json and *.safetensors."""
    name = names.base_name(name)
    spec, bytes_read = transfer.base_spec_from(source, name)
    origin = os.path.abspath(source) if os.path.isdir(source) else source
    with session.registry() as registry:
        added = registry.add_base(BaseAdd(spec=spec, source=origin))

    def text() -> None:
        _print_base(added)
        weights = f" of {output.size(spec.weights_bytes)}" if spec.weights_bytes else ""
        click.echo(output.faint(f"  read {output.size(bytes_read)}{weights}: configuration and headers only"))

    output.answer(added, text)


@base.command("list")
@output.json_option
def list_bases() -> None:
    """List the registered bases."""
    with session.registry() as registry:
        found = registry.bases()
    output.answer(found, lambda: _print_list(found.items))


def _print_list(items: list[BaseView]) -> None:
    if not items:
        click.echo("No bases. Register one: adapter base add NAME FOLDER")
        return
    rows = [
        (
            output.strong(item.name),
            item.spec.architecture or item.spec.model_type,
            output.amount(item.spec.parameters),
            item.spec.quantisation or item.spec.dtype,
            str(item.adapters),
            item.source,
        )
        for item in items
    ]
    columns = ("name", "architecture", "parameters", "weights", "adapters", "source")
    output.table(columns, rows, right=frozenset({"parameters", "adapters"}))


@base.command()
@click.argument("name")
@output.json_option
def show(name: str) -> None:
    """Show what is known of a base."""
    with session.registry() as registry:
        found = registry.base(name)
    output.answer(found, lambda: _print_base(found))


def _print_base(view: BaseView) -> None:
    spec = view.spec
    click.echo(f"{output.strong(view.name)}  {output.faint(view.fingerprint)}")
    prints = spec.fingerprints
    output.facts(
        [
            ("model", f"{spec.architecture or spec.model_type}, {output.amount(spec.parameters)} parameters"),
            ("sizes", _sizes(spec)),
            ("weights", ", ".join(filter(None, [spec.dtype, spec.quantisation, output.size(spec.weights_bytes)]))),
            ("modules", _kinds(spec)),
            ("tokenizer", str(prints.tokenizer or "")),
            ("template", str(prints.template or "")),
            ("source", view.source),
            ("adapters", str(view.adapters)),
            ("added", f"{output.moment(view.created_at)} by {view.created_by}"),
        ]
    )


def _sizes(spec: BaseSpec) -> str:
    heads = f"{spec.heads} heads" + (f" ({spec.kv_heads} for keys)" if spec.kv_heads not in (0, spec.heads) else "")
    parts = [f"{spec.layers} layers", f"width {spec.hidden}", heads, f"vocabulary {spec.vocab}"]
    return ", ".join(parts) + (", tied" if spec.tied else "")


def _kinds(spec: BaseSpec) -> str:
    counted = Counter(module.kind for module in spec.modules.values())
    return ", ".join(f"{count} {kind}" for kind, count in counted.most_common())
