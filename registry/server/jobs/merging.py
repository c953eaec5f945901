"""Merging: a recipe is checked against the rows of its sources, its refs are fixed to versions, and a job is queued.

Invariants
- Nothing is queued that the rows already speak against; the answer names every reason.
- The job holds version numbers, which are never reused: an alias that moves meanwhile changes nothing.
- Whoever asks must see every source, and must be allowed to push where the result goes.
"""

from __future__ import annotations

from sqlmodel import Session

from registry import names
from registry.api.jobs import JobSubmit
from registry.errors import Conflict, Invalid
from registry.evaluation.verdicts import Check
from registry.jobs import Kind
from registry.merging import recipes
from registry.merging.recipes import Ingredient, Operation, Recipe
from registry.names import AdapterName, Ref
from registry.roles import Scope
from registry.server.actors import Actor
from registry.server.catalog import base_identity, bases, verdicts, versions
from registry.server.database.models import BaseRow, JobRow, VersionRow
from registry.server.jobs import queue

KINDS = {Operation.COMBINE: Kind.MERGE, Operation.RESIZE: Kind.MERGE, Operation.FUSE: Kind.FUSE}


def submit_merge(session: Session, actor: Actor, request: JobSubmit) -> JobRow:
    """The job of this recipe. `Invalid` (RECIPE_INVALID) with every reason why it cannot work."""
    recipe = _recipe(request)
    versions = [_find(session, actor, Ref.parse(source)) for source in recipe.sources]
    recipes.demand(recipe, [_ingredient(session, ref, row) for ref, row in versions])
    if not versions:
        raise Invalid("RECIPE_INVALID", "sources: names no adapter")
    first, row = versions[0]
    base = session.get_one(BaseRow, row.base_id)
    _demand_target(session, actor, recipe, base)
    fixed = tuple(str(Ref(ref.name, version.number)) for ref, version in versions)
    payload = recipe.model_copy(update={"sources": fixed}).model_dump(mode="json")
    where = recipe.onto or base.name
    return queue.enqueue(session, actor, request.kind, row, name=first.name, base=where, payload=payload)


def _recipe(request: JobSubmit) -> Recipe:
    recipe = Recipe.read(request.payload)
    if KINDS.get(recipe.operation) is not request.kind:
        raise Invalid("REQUEST_INVALID", f"payload: {recipe.operation} is no job of kind '{request.kind}'")
    return recipe


def _find(session: Session, actor: Actor, ref: Ref) -> tuple[Ref, VersionRow]:
    return ref, versions.find(session, actor, ref.name, ref.selector, include_withdrawn=False)


def _ingredient(session: Session, ref: Ref, row: VersionRow) -> Ingredient:
    base = session.get_one(BaseRow, row.base_id)
    newest = verdicts.newest_of(session, row)
    compat = [v.outcome for v in newest if v.check is Check.COMPAT]
    broken = any(finding.code == "weights.not_finite" for v in newest for finding in v.findings)
    return Ingredient(
        name=f"{ref.name}@{row.number}", digest=row.digest, base=base.name, base_fingerprint=base.fingerprint,
        facts=row.facts.get("engine") or {}, compat=compat[-1] if compat else "", is_finite=not broken,
    )  # fmt: skip


def _demand_target(session: Session, actor: Actor, recipe: Recipe, base: BaseRow) -> None:
    if recipe.operation is not Operation.FUSE:
        actor.require(Scope.PUSH, AdapterName.parse(recipe.into))
        return
    name = names.base_name(recipe.into)
    if name in {known.name for known in bases.list_bases(session, actor).items}:
        raise Conflict("BASE_EXISTS", f"base '{name}' exists", next_step="fuse into another name: a base never changes")
    expected = bases.load_spec(base)
    if not recipe.onto:
        if expected.quantization and not recipe.dequantize:
            raise recipes.on_its_grid(expected.quantization)
        return
    other = bases.find(session, names.base_name(recipe.onto))
    actual = bases.load_spec(other)
    sizes = ("architecture", "hidden", "layers", "heads", "kv_heads", "vocab")
    if any(getattr(expected, size) != getattr(actual, size) for size in sizes):
        raise Invalid("RECIPE_INVALID", f"onto: the base {other.name} is of another architecture than {base.name}")
    if actual.quantization:
        raise Invalid("RECIPE_INVALID", f"onto: the base {other.name} is packed ({actual.quantization}), too")
    related = [one for one in base_identity.find_relatives(session, base) if one.other == other.name]
    if related and related[0].match == "unrelated":
        raise Invalid("RECIPE_INVALID", f"onto: the weights of {other.name} are unrelated to those of {base.name}")
