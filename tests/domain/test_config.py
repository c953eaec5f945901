"""Reading adapter configurations. Bad ones: tests/bad_inputs/test_adapter_configs.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry.adapters import methods
from registry.adapters.peft.config import AdapterConfig, BaseClaim, read_claim, read_config, read_fields
from registry.adapters.peft.targets import Choice, Targets, endings
from registry.errors import Invalid
from tests import effort, samples

FIELDS: dict[str, Any] = json.loads(samples.lora(samples.llama())[samples.CONFIG])


def config(**fields: Any) -> AdapterConfig:
    return read_fields({**FIELDS, **fields})


def test_a_plain_configuration_is_read() -> None:
    config = read_config(samples.lora(samples.llama(), rank=4, alpha=32, rslora=True)[samples.CONFIG])
    assert (config.method, config.task, config.rank, config.alpha) == ("LORA", "CAUSAL_LM", 4, 32.0)
    assert (config.use_rslora, config.use_dora, config.targets) == (True, False, ("q_proj", "v_proj"))
    assert config.base == BaseClaim(name="tiny-llama")
    assert config.findings == ()


def test_a_configuration_survives_json() -> None:
    adapter_config = config(
        rank_pattern={"q_proj": 4}, layer_replication=[[0, 3]], trainable_token_indices={"wte": [1, 2]}
    )
    assert AdapterConfig.model_validate_json(adapter_config.model_dump_json()) == adapter_config


@pytest.mark.parametrize("method", sorted(methods.METHODS))
def test_every_method_of_peft_is_known(method: str) -> None:
    assert config(peft_type=method).method == method


def test_an_alpha_that_is_not_written_is_none_and_not_a_guess() -> None:
    assert config(lora_alpha=None).alpha is None


def test_methods_other_than_lora_call_their_alpha_alpha() -> None:
    assert config(peft_type="LOHA", alpha=8, lora_alpha=3).alpha == 8


def test_the_masks_that_adalora_leaves_in_rank_pattern_are_counted() -> None:
    assert config(peft_type="ADALORA", rank_pattern={"x.lora_E": [True, False]}).rank_pattern == {"x": 1}
    assert config(peft_type="ADALORA", rank_pattern={"x.lora_E": 3, "y": []}).rank_pattern == {"": 0}


def test_ranks_by_thousands_of_names_are_read_and_by_thousands_of_patterns_are_refused() -> None:
    names = {f"model.layers.{n}.q_proj": 4 for n in range(2000)}
    assert len(config(rank_pattern=names).rank_pattern) == 2000
    with pytest.raises(Invalid, match="at most 1024 patterns"):
        config(rank_pattern={f".*{name}": 4 for name in names})


def test_trained_tokens_may_be_a_bare_list_or_by_module() -> None:
    assert config(trainable_token_indices=[5, 6]).token_indices == {"embed_tokens": (5, 6)}
    assert config(trainable_token_indices={"wte": [5]}).token_indices == {"wte": (5,)}


@pytest.mark.parametrize(
    ("written", "name", "is_local"),
    [
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B", False),
        ("llama-a", "llama-a", False),
        ("models/a/b", "b", True),
        ("/data/models/my model", "my-model", True),
        ("~/m", "m", True),
        (None, "", False),
        ("", "", False),
    ],
)
def test_the_bases_name_is_a_claim_and_a_folder_keeps_its_last_part(written: Any, name: str, is_local: bool) -> None:
    assert read_claim(written) == (BaseClaim(name=name, is_local=is_local), [])


def test_a_claim_names_a_base_by_its_last_part_in_any_case() -> None:
    assert BaseClaim(name="HuggingFaceTB/SmolLM2-135M-Instruct").names("smollm2-135m-instruct")
    assert not BaseClaim(name="llama-a").names("llama-b")
    assert not BaseClaim().names("llama-b")


@pytest.mark.security
def test_a_claim_selects_a_base_of_its_exact_name_or_one_without_an_organization() -> None:
    claim = BaseClaim(name="hf-org/Alpha")
    assert [claim.selects(base) for base in ("hf-org/Alpha", "alpha", "evil/Alpha", "beta")] == [
        True,
        True,
        False,
        False,
    ]
    assert not BaseClaim(name="Alpha").selects("evil/Alpha")


# ------------------------------------------------------------------------ targets
PATHS = [f"model.layers.{n}.{leaf}" for n in range(12) for leaf in ("self_attn.q_proj", "mlp.down_proj")]


def covered(**fields: Any) -> list[str]:
    targets = Targets(config(**fields))
    return [path for path in PATHS if targets.covers(path)]


def test_a_name_means_the_module_and_every_path_that_ends_in_it() -> None:
    assert covered(target_modules=["q_proj"]) == PATHS[::2]
    assert covered(target_modules=["self_attn.q_proj"]) == PATHS[::2]
    assert covered(target_modules=["model.layers.1.mlp.down_proj"]) == [PATHS[3]]
    assert covered(target_modules=["proj"]) == []


def test_a_text_means_every_path_that_matches_it_whole() -> None:
    assert covered(target_modules=r".*layers\.[01]\.self_attn\.q_proj") == [PATHS[0], PATHS[2]]
    assert covered(target_modules="q_proj") == []


def test_all_linear_covers_all_but_the_excluded() -> None:
    assert covered(target_modules="all-linear", exclude_modules=["down_proj"]) == PATHS[::2]
    assert covered(target_modules="ALL-LINEAR") == PATHS


def test_layers_restrict_names_by_the_first_number_in_the_path() -> None:
    assert covered(target_modules=["q_proj"], layers_to_transform=[1, 11]) == [PATHS[2], PATHS[22]]
    assert covered(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="layers") == [PATHS[2]]
    assert covered(target_modules=["q_proj"], layers_to_transform=[1], layers_pattern="h") == []


@pytest.mark.parametrize(
    ("path", "lists", "layer"),
    [
        ("a.h.1.b.2.c", ["b", "h"], 2), ("a.h.1.b.2.c", ["x", "h", "b"], 1), ("h.1.h.2.c", ["h"], 1),
        ("a.xh.1.c", ["h"], -1), ("a.h.1", ["h"], -1), ("h.1.2.c", ["h.1", "h"], 2), ("h.1234567890.c", ["h"], -1),
        ("h.1.c", ["h", "h", "c", "1"], 1), ("a.12.1.c", ["h", "h", "a", "12"], 12), ("m.a.h.7.c", ["a.h"], 7),
    ],
)  # fmt: skip
def test_the_first_list_of_layers_in_a_path_gives_its_layer(path: str, lists: list[str], layer: int) -> None:
    """As PEFT searches: one list after the other, each from the left."""
    for number in {layer, 0, 1} - {-1}:
        fields = {"target_modules": ["c", "1"], "layers_to_transform": [number], "layers_pattern": lists}
        assert Targets(config(**fields)).covers(path) == (number == layer)


def test_the_parts_of_a_long_path_do_not_multiply() -> None:
    """A header of 16 MiB with such names kept a server busy for ten minutes with one plan."""
    targets = Targets(config(target_modules=["embed_tokens"], modules_to_save=["x"]))

    def run(parts: int) -> None:
        assert targets.covers("1." * parts + "embed_tokens")

    run(1)
    assert effort.lines(lambda: run(200)) < 2.5 * effort.lines(lambda: run(100))


def test_a_saved_module_is_never_a_target_nor_is_what_lies_inside_it() -> None:
    assert covered(target_modules=["q_proj", "down_proj"], modules_to_save=["mlp"]) == PATHS[::2]


def test_the_first_key_that_matches_the_end_of_a_path_wins() -> None:
    ranks = Choice({r"layers\.1\..*": 2, "q_proj": 4, "layers.3.self_attn.q_proj": 8, "^model.norm": 16})
    assert [ranks.pick(path) for path in (PATHS[0], PATHS[2], PATHS[6], PATHS[5])] == [4, 2, 4, None]
    assert ranks.pick("model.norm") == 16
    assert ranks.pick("x.model.norm") is None


def test_endings_are_the_path_and_its_ends_after_dots() -> None:
    assert list(endings("a.b.c")) == ["a.b.c", "b.c", "c"]
