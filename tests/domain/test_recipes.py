"""Recipes: what is wrong with one is said before any work, for every reason at once."""

from __future__ import annotations

import math
from typing import Any

import pytest

from registry.errors import Invalid
from registry.merging import recipes
from registry.merging.recipes import Ingredient, MergeOperation, Method, Recipe


def ingredient(name: str = "acme/a@1", **facts: Any) -> Ingredient:
    compat, base, is_finite = facts.pop("compat", "pass"), facts.pop("base", "tiny"), facts.pop("is_finite", True)
    return Ingredient(
        name=name, digest=f"sha256:{name}", base=base, base_fingerprint=f"of {base}", facts={"max_rank": 8, **facts},
        compat=compat, is_finite=is_finite,
    )  # fmt: skip


def codes(*ingredients: Ingredient, **recipe: Any) -> set[str]:
    values = {"operation": MergeOperation.COMBINE, "sources": tuple(item.name for item in ingredients), **recipe}
    return {finding.code for finding in recipes.check(Recipe(**values), ingredients) if finding.severity == "error"}


ONE, OTHER = ingredient("acme/a@1"), ingredient("acme/b@1")


def test_plain_adapters_of_one_base_go_together() -> None:
    assert codes(ONE, OTHER) == set()
    assert codes(ONE, OTHER, weights=(0.7, -0.3), method=Method.DARE_TIES, density=0.2, rank=4) == set()
    assert codes(ONE, operation=MergeOperation.RESIZE, rank=4) == set()
    assert codes(ONE, operation=MergeOperation.FUSE) == set()


@pytest.mark.parametrize("weight", [0.0, math.nan, math.inf, -math.inf, 1e9])
def test_a_weight_is_a_finite_number_other_than_zero(weight: float) -> None:
    assert codes(ONE, OTHER, weights=(1.0, weight)) == {"recipe.weight_invalid"}


@pytest.mark.parametrize("rank", [-1, 4097, 10**9])
def test_a_rank_is_within_its_limits(rank: int) -> None:
    assert codes(ONE, OTHER, rank=rank) == {"recipe.rank_invalid"}
    assert codes(ONE, operation=MergeOperation.RESIZE, rank=0) == {"recipe.rank_invalid"}


def test_what_a_fuse_or_a_resize_would_ignore_is_refused() -> None:
    assert codes(ONE, operation=MergeOperation.FUSE, weights=(0.5,)) == {"recipe.weight_invalid"}
    assert codes(ONE, operation=MergeOperation.RESIZE, rank=4, weights=(0.5,)) == {"recipe.weight_invalid"}
    assert codes(ONE, operation=MergeOperation.FUSE, rank=4) == {"recipe.rank_invalid"}
    assert codes(ONE, operation=MergeOperation.FUSE, weights=(1.0,)) == set()


def test_an_exact_sum_that_no_adapter_may_hold_is_refused() -> None:
    large = [ingredient(f"acme/{n}@1", max_rank=2100) for n in range(2)]
    assert codes(*large) == {"recipe.rank_invalid"}
    assert codes(*large, rank=64) == set()


def test_sources_are_known_different_and_for_one_base() -> None:
    assert codes(ONE, ONE) == {"recipe.source_duplicate"}
    assert codes(ONE, ingredient("acme/b@1", base="other")) == {"recipe.bases_differ"}
    assert codes(ONE, sources=("acme/a@1", "acme/gone")) == {"recipe.sources"}
    assert codes(ONE, ingredient("acme/b@1", compat="fail")) == {"recipe.incompatible"}
    assert codes(ONE, ingredient("acme/b@1", is_finite=False)) == {"recipe.not_finite"}


@pytest.mark.parametrize(
    ("facts", "combined", "fused"),
    [
        ({"use_dora": True}, "recipe.dora", ""),
        ({"saved_modules": ("lm_head",)}, "recipe.whole_tensors", ""),
        ({"trained_tokens": True}, "recipe.whole_tensors", ""),
        ({"layer_replication": True}, "recipe.layers", ""),
        ({"method": "LOHA"}, "recipe.method", ""),
        ({"method": "PROMPT_TUNING"}, "recipe.not_mergeable", "recipe.not_mergeable"),
        ({"invocation_tokens": True}, "recipe.not_mergeable", "recipe.not_mergeable"),
        ({"format": "mlx"}, "recipe.not_mergeable", "recipe.not_mergeable"),
        ({"kind": "image"}, "recipe.not_mergeable", "recipe.not_mergeable"),
        ({"moves_base": True, "initialization": "pissa"}, "recipe.base_was_changed", "recipe.base_was_changed"),
        ({"initialization": "lora_ga"}, "recipe.base_was_changed", "recipe.base_was_changed"),
    ],
)  # fmt: skip
def test_what_has_no_sum_may_still_be_fused_and_what_no_weights_equal_may_not(
    facts: dict[str, Any], combined: str, fused: str
) -> None:
    source = ingredient("acme/c@1", **facts)
    assert codes(ONE, source) == {combined}
    assert codes(source, operation=MergeOperation.FUSE) == ({fused} if fused else set())


def test_every_reason_is_said_at_once() -> None:
    recipe = Recipe(
        operation=MergeOperation.COMBINE, sources=("acme/a@1", "acme/c@1"), weights=(math.nan, 1), rank=-1, density=2
    )
    with pytest.raises(Invalid) as refused:
        recipes.demand(recipe, [ONE, ingredient("acme/c@1", use_dora=True)])
    assert refused.value.code == "RECIPE_INVALID"
    assert refused.value.detail.startswith("weights: ")
    assert {reason.code for reason in refused.value.findings} == {
        "recipe.weight_invalid", "recipe.rank_invalid", "recipe.density_invalid", "recipe.dora",
    }  # fmt: skip


def test_a_reason_that_begins_with_the_source_does_not_name_it_twice() -> None:
    with pytest.raises(Invalid, match=r"\Aacme/c@1 is DoRA"):
        recipes.demand(
            Recipe(operation=MergeOperation.COMBINE, sources=("acme/a@1", "acme/c@1")),
            [ONE, ingredient("acme/c@1", use_dora=True)],
        )


def test_the_annotation_is_the_recipe_without_where_it_goes() -> None:
    recipe = Recipe(
        operation=MergeOperation.COMBINE, sources=("acme/a@1", "acme/b@2"), weights=(0.5, 2), into="acme/both"
    )
    text = recipe.annotations[recipes.ANNOTATION]
    assert "both" not in text
    assert Recipe.model_validate_json(text) == recipe.model_copy(update={"into": ""})
