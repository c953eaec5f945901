"""PEFT's methods: their tensors and shapes, and what the registry can do with each.

A method of a newer PEFT is a row here; reading, compat check, merging, worker and reference page follow the row. A
method or task outside these tables is refused. tests/facts/test_methods_of_peft.py holds the rows equal to PEFT's own
modules. The fields of configurations are in peft/fields.json. The examined version
of PEFT is in registry/engines/rules/peft.toml.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from registry.strict.fields import walk


@dataclass(frozen=True, slots=True)
class TensorRule:
    """A tensor that each targeted module has, or (`is_shared`) that all modules share. It must be in the file.

    `name`: what follows the module's path, or `base_model.` if shared. `#` in it stands for each number below
    `numbers`, or for the module's category.
    `shape`: formulas, one a dimension (peft/formulas.py); `any` is a size that headers do not show.
    `condition`: a formula; where it is false, the tensor must be absent. Of rules with one name the first one counts.
    """

    name: str
    shape: str
    condition: str = "True"
    numbers: str = ""
    is_shared: bool = False


def _shared(name: str, shape: str, condition: str = "True", numbers: str = "") -> TensorRule:
    return TensorRule(name, shape, condition, numbers, is_shared=True)


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """One value of `peft_type`, and everything the registry knows about it.

    `marks`: how names of its tensors continue after the path of their module. `shared_marks`: names of tensors that all
    modules share, directly under `base_model.`. A prompt method stores exactly the tensors named by `marks`.
    `pair_marks`: of a method with factor pairs, every such name and its role: a `TensorRole` as text. The rank is
    in the field `rank_field` and the patterns, and alpha is `lora_alpha`.
    `tensors`: every tensor that is not half of a pair; empty: headers do not show what PEFT expects.
    `derived`: names that these formulas use beside fields and sizes; each formula may use the names before it.
    `kinds`: the kinds of modules that PEFT wraps for it. `needs`: formulas that must hold for each module.
    `names_targets`: a formula over the configuration; where it holds, each target has tensors of its own.
    `needs_values`: a formula over the configuration; where it holds, PEFT cannot build all of it on the meta device.
    `may_be_empty`: how names of tensors begin that PEFT also saves without a number.
    `float32_only`: how names of tensors end that PEFT loads in 32 bits only.
    `mergeable`: its effect equals some change of weights. `fused_by`: who writes that change into the base's weights;
    empty: merging/recipes.py refuses to fuse it. `effect`: what its tensors do to weights of the base.
    `combinable`: it has a low-rank weighted sum. `hot_swappable`: it can be swapped on a model that stays loaded.
    """

    name: str
    marks: tuple[str, ...] = ()
    shared_marks: tuple[str, ...] = ()
    title: str = ""
    pair_marks: Mapping[str, str] = field(default_factory=dict)
    rank_field: str = "r"
    tensors: tuple[TensorRule, ...] = ()
    derived: Mapping[str, str] = field(default_factory=dict)
    kinds: tuple[str, ...] = ("linear",)
    needs: tuple[str, ...] = ()
    is_prompt: bool = False
    names_targets: str = "True"
    needs_values: str = "False"
    may_be_empty: tuple[str, ...] = ()
    float32_only: tuple[str, ...] = ()
    mergeable: bool = True
    fused_by: Literal["", "registry", "peft"] = ""
    effect: Literal["adds", "replaces", "scales"] = "adds"
    combinable: bool = False
    hot_swappable: bool = False

    @property
    def has_pairs(self) -> bool:
        """Whether its tensors are pairs of factors."""
        return bool(self.pair_marks)

    @property
    def shapes_known(self) -> bool:
        """Whether the compat check compares the names and shapes of its tensors with what PEFT expects."""
        return bool(self.tensors)

    def mark_of(self, role: str) -> str:
        """The first name of the tensor with this role, such as `lora_A.weight`."""
        return next(mark for mark, its_role in self.pair_marks.items() if its_role == role)


_T = TensorRule
_CONV1D = ("linear", "conv1d")


def _prompt(name: str, shape: str, *more: TensorRule, needs_values: str = "True") -> PeftMethod:
    """A method that puts virtual tokens before the text."""
    rules = (_T("prompt_embeddings", shape), *more)
    return PeftMethod(name, tuple(rule.name for rule in rules), tensors=rules, is_prompt=True,
                      needs_values=needs_values, mergeable=False)  # fmt: skip


_LORA_PAIR = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "a", "lora_embedding_B": "b", "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_SAMPLER = "lora_monteclora_sampler"
_LORA_VARIANT_TENSORS = (
    _T("lora_diag", "rank", "kasa_config is not None"),
    _T("lora_velora_embed", "ceil(inputs, velora_config['num_groups'])", "velora_config is not None"),
    _T(f"{_SAMPLER}.std_prior", "rank", "monteclora_config is not None"),
    _T(f"{_SAMPLER}.gaussian_var_prior", "rank, rank", "monteclora_config is not None"),
    _T(f"{_SAMPLER}.expert_weights_prior", "monteclora_config['num_samples']", "monteclora_config is not None"),
    _T(f"{_SAMPLER}.expert_weights", "monteclora_config['num_samples']", "monteclora_config is not None"),
)
_VIRTUAL_TOKENS = "num_virtual_tokens * submodules"
_GLORA_PATHS = (
    *(_T(f"glora_{path}.{name}", shape, condition)
      for path in "AB"
      for name, shape, condition in (("Xd", "outputs, r", "config_A_B == 'lora'"),
                                     ("Xu", "r, inputs", "config_A_B == 'lora'"),
                                     ("X", "outputs, 1", "config_A_B == 'vector'"),
                                     ("X", "1", "config_A_B == 'constant'"),
                                     ("zeros", "outputs, inputs", "config_A_B == 'none'"))),
    _T("glora_C.Xd", "inputs, r", "bias and config_C == 'lora'"),
    _T("glora_C.Xu", "r, 1", "bias and config_C == 'lora'"),
    _T("glora_C.X", "inputs, 1", "bias and config_C == 'vector'"),
    _T("glora_C.zeros", "inputs, 1", "not bias or config_C == 'none'"),
    *(_T(f"glora_{path}.{name}", shape, condition)
      for path in "DE"
      for name, shape, condition in (("X", "outputs", "bias and config_D_E == 'vector'"),
                                     ("X", "1", "bias and config_D_E == 'constant'"),
                                     ("zeros", "outputs", "not bias or config_D_E == 'none'"))),
)  # fmt: skip
_ROWS = (
    PeftMethod("LORA", title="LoRA", pair_marks=_LORA_PAIR | {rule.name: "piece" for rule in _LORA_VARIANT_TENSORS},
               tensors=_LORA_VARIANT_TENSORS, needs_values="monteclora_config is not None",
               kinds=("linear", "conv1d", "embedding", "conv", "experts", "parameter"),
               fused_by="registry", combinable=True, hot_swappable=True),
    PeftMethod("ADALORA", title="AdaLoRA", pair_marks={"lora_A": "a", "lora_B": "b", "lora_E": "piece"},
               rank_field="init_r", tensors=(_T("lora_E", "rank, 1"),), kinds=_CONV1D, fused_by="registry",
               needs_values="rank_pattern is not None"),
    PeftMethod("ADAMSS", ("adamss_",), needs_values="True"),
    PeftMethod("ADAPTION_PROMPT", ("adaption_",), mergeable=False),
    PeftMethod("BEFT", ("beft_",), tensors=(_T("beft_bias", "1, outputs"),)),
    PeftMethod("BOFT", ("boft_R", "boft_s"), fused_by="peft", needs_values="True",
               tensors=(_T("boft_R", "1 if boft_n_butterfly_factor == 1 else any, inputs // boft_block_size, "
                           "boft_block_size, boft_block_size", "boft_block_size"),
                        _T("boft_R", "1 if boft_n_butterfly_factor == 1 else any, boft_block_num, "
                           "inputs // boft_block_num, inputs // boft_block_num"),
                        _T("boft_s", "outputs, 1")),
               needs=("inputs % (boft_block_size or boft_block_num) == 0",)),
    PeftMethod("C3A", ("c3a_",),
               tensors=(_T("c3a_kernel", "outputs // block_size, inputs // block_size, block_size"),),
               needs=("inputs % block_size == 0", "outputs % block_size == 0")),
    _prompt("CARTRIDGE", "num_virtual_tokens, prefix_width"),
    _prompt("CPT", "length(cpt_token_ids), hidden"),
    PeftMethod("DEFT", ("deft_",), kinds=_CONV1D,
               tensors=(_T("deft_P", "outputs, r"), _T("deft_R", "r, inputs", "not para"))),
    PeftMethod("DELORA", ("delora_",),
               tensors=(_T("delora_A", "rank, inputs"), _T("delora_B", "outputs, rank"), _T("delora_lambda", "1"),
                        _T("delora_w_norm", "inputs"))),
    PeftMethod("FOURIERFT", ("fourierft_",), tensors=(_T("fourierft_spectrum", "n_frequency"),), kinds=_CONV1D,
               needs=("n_frequency <= inputs * outputs",)),
    PeftMethod("FROD", ("frod_",), ("frod_",), kinds=_CONV1D, needs_values="True",
               may_be_empty=("frod_lambda_s_values", "frod_s_indices."),
               tensors=(_T("frod_lambda_l", "inputs"),
                        _T("frod_lambda_s_values", "sparse_entries(inputs, sparse_rate)"),
                        _shared("frod_V.#", "inputs, inputs", "save_projection", "category"),
                        _shared("frod_s_indices.#", "2, sparse_entries(inputs, sparse_rate)", "save_projection",
                                "category"),
                        _shared("frod_s_size.#", "2", "save_projection", "category"))),
    PeftMethod("GLORA", ("glora_",), tensors=_GLORA_PATHS),
    PeftMethod("GRALORA", ("gralora_",), kinds=_CONV1D,
               tensors=(_T("gralora_A", "gralora_k, inputs // gralora_k, r"),
                        _T("gralora_B", "gralora_k, r, outputs // gralora_k"),
                        _T("gralora_A_general.weight", "hybrid_r, inputs", "hybrid_r > 0"),
                        _T("gralora_B_general.weight", "outputs, hybrid_r", "hybrid_r > 0")),
               needs=("inputs % gralora_k == 0", "outputs % gralora_k == 0")),
    PeftMethod("HIRA", ("hira_",), kinds=(*_CONV1D, "embedding"),
               tensors=(_T("hira_A", "r, inputs", "not embedding"), _T("hira_B", "outputs, r", "not embedding"),
                        _T("hira_embedding_A", "r, inputs", "embedding"),
                        _T("hira_embedding_B", "outputs, r", "embedding"))),
    PeftMethod("HRA", ("hra_",), tensors=(_T("hra_u", "inputs, r"),)),
    PeftMethod("IA3", ("ia3_l",), tensors=(_T("ia3_l", "1, inputs", "feedforward"), _T("ia3_l", "outputs, 1")),
               kinds=_CONV1D, fused_by="registry", effect="scales"),
    PeftMethod("LILY", ("lily_",), ("lily_",), mergeable=False,
               tensors=(_T("lily_A.weight", "r, inputs"), _T("lily_B.weight", "num_B * r, outputs"),
                        _T("lily_router.weight", "num_B, r"))),
    PeftMethod("LN_TUNING", ("ln_tuning_layers.",), kinds=(*_CONV1D, "norm", "embedding"), fused_by="registry",
               effect="replaces",
               tensors=(_T("ln_tuning_layers.weight", "outputs", "norm"),
                        _T("ln_tuning_layers.weight", "inputs, outputs", "stored_by_inputs"),
                        _T("ln_tuning_layers.weight", "outputs, inputs"),
                        _T("ln_tuning_layers.bias", "outputs", "bias"))),
    PeftMethod("LOHA", ("hada_",), title="LoHa", fused_by="peft",
               tensors=tuple(_T(f"hada_{factor}_{half}", shape) for factor in ("w1", "w2")
                             for half, shape in (("a", "outputs, rank"), ("b", "rank, inputs")))),
    PeftMethod("LOKR", ("lokr_",), title="LoKr", fused_by="peft",
               derived={f"split_{side}": f"factors({side}, decompose_factor)" for side in ("inputs", "outputs")},
               tensors=tuple(
                   rule for number, factor, split in (
                       (0, "lokr_w1", "decompose_both and rank < max(split_outputs[0], split_inputs[0]) / 2"),
                       (1, "lokr_w2", "rank < max(split_outputs[1], split_inputs[1]) / 2"))
                   for rule in (_T(f"{factor}_a", f"split_outputs[{number}], rank", split),
                                _T(f"{factor}_b", f"rank, split_inputs[{number}]", split),
                                _T(factor, f"split_outputs[{number}], split_inputs[{number}]", f"not ({split})")))),
    PeftMethod("MISS", ("miss_block",), fused_by="peft",
               tensors=(_T("miss_block", "outputs // r, r, r", "init_weights == 'bat'"),
                        _T("miss_block", "r, mini_r", "init_weights == 'mini'"),
                        _T("miss_block", "r, outputs")),
               needs=("r <= inputs", "init_weights != 'bat' or inputs % r == 0 and outputs % r == 0",
                      "init_weights != 'mini' or outputs % mini_r == 0")),
    _prompt("MULTITASK_PROMPT_TUNING", f"{_VIRTUAL_TOKENS}, hidden",
            _T("prefix_task_cols", f"num_tasks, {_VIRTUAL_TOKENS}, num_ranks"),
            _T("prefix_task_rows", "num_tasks, num_ranks, hidden"), needs_values="False"),
    PeftMethod("OFT", ("oft_R.", "oft_embedding_R."), kinds=("linear", "embedding"), fused_by="peft",
               derived={"width": "outputs if embedding else inputs",
                        "oft_size": "nearest_divisor(width, oft_block_size) if oft_block_size else "
                                    "width // nearest_divisor(width, r)",
                        "oft_blocks": "width // oft_size"},
               tensors=tuple(_T(f"{name}.weight", "1 if block_share else oft_blocks, "
                                "oft_size * (oft_size - 1) // 2", condition)
                             for name, condition in (("oft_R", "not embedding"), ("oft_embedding_R", "embedding")))),
    # its rank_pattern is searched for anywhere in the path, and holds fractions too
    PeftMethod("OSF", ("osf_",),
               derived={"osf_size": "any if rank_pattern else unfrozen(min(inputs, outputs), effective_rank)"},
               tensors=(_T("osf_svd_params.S_low", "osf_size"), _T("osf_svd_params.U_low", "outputs, osf_size"),
                        _T("osf_svd_params.V_low", "osf_size, inputs"))),
    PeftMethod("PEANUT", ("peanut_",),
               tensors=(_T("peanut_A.weight", "r, outputs"), _T("peanut_B.weight", "outputs, r"),
                        _T("peanut_encoders.#.weight", "r, r", numbers="depth"),
                        _T("peanut_decoders.#.weight", "r, r", numbers="depth"))),
    PeftMethod("POLY", ("poly_",), mergeable=False,
               tensors=(_T("poly_lora_A", "n_splits, n_skills, inputs // n_splits, r"),
                        _T("poly_lora_B", "n_splits, n_skills, r, outputs // n_splits"),
                        _T("poly_router.module_logits", "n_tasks, n_splits * n_skills"))),
    _prompt("PREFIX_TUNING", "num_virtual_tokens, prefix_width"),
    _prompt("PROMPT_TUNING", f"{_VIRTUAL_TOKENS}, hidden"),
    PeftMethod("PSOFT", ("psoft_",),
               tensors=(_T("psoft_R.weight", "r * (r - 1) // 2", "psoft_orth"), _T("psoft_R.weight", "r, r"),
                        _T("psoft_R.vector_b", "r", "psoft_mag_b"), _T("psoft_R.vector_a", "r", "psoft_mag_a"))),
    PeftMethod("PVERA", ("pvera_",), ("pvera_A", "pvera_B"), kinds=_CONV1D,
               tensors=(_T("pvera_lambda_b", "outputs"), _T("pvera_lambda_d", "2 * r"),
                        _shared("pvera_A", "2 * r, max_inputs", "save_projection"),
                        _shared("pvera_B", "max_outputs, r", "save_projection"))),
    _prompt("P_TUNING", f"{_VIRTUAL_TOKENS}, hidden"),
    PeftMethod("RANDLORA", ("randlora_",), ("randlora_A", "randlora_B"), kinds=_CONV1D, fused_by="peft",
               tensors=(_T("randlora_lambda", "r, ceil(min(inputs, outputs), r)"),
                        _T("randlora_gamma", "ceil(min(inputs, outputs), r), min(inputs, outputs)"),
                        *(rule("randlora_A", "r, 1, min(max_inputs, max_outputs)", "save_projection")
                          for rule in (_T, _shared)),
                        *(rule("randlora_B", "max(max_inputs, max_outputs), "
                               "ceil(min(max_inputs, max_outputs), r), r", "save_projection")
                          for rule in (_T, _shared)))),
    PeftMethod("ROAD", ("road_",),
               tensors=tuple(_T(name, "outputs * {'road_1': 1, 'road_2': 2, 'road_4': 4}[variant] // 2")
                             for name in ("road_theta", "road_alpha")),
               needs=("outputs % group_size == 0",)),
    PeftMethod("SHADOW", ("shadow_",), ("shadow_backbone.", "shadow_head.", "shadow_projection."), mergeable=False),
    PeftMethod("SHIRA", ("shira_weight", "shira_indices"), fused_by="peft", needs_values="True",
               tensors=(_T("shira_weight", "r * (inputs + outputs)"), _T("shira_indices", "2, r * (inputs + outputs)")),
               needs=("r * (inputs + outputs) <= inputs * outputs",)),
    PeftMethod("SUPERTUNING", ("supertuning_",),
               tensors=(_T("supertuning_values", "int(inputs * outputs * (1 - sparsity))"),
                        _T("supertuning_indices", "int(inputs * outputs * (1 - sparsity))", "save_precomputed_indices"),
                        _T("supertuning_lora_A.weight", "r, inputs", "r is not None"),
                        _T("supertuning_lora_B.weight", "outputs, r", "r is not None")),
               needs=("int(inputs * outputs * (1 - sparsity)) >= 1",)),
    PeftMethod("TINYLORA", ("tinylora_",), ("tinylora_v",), kinds=(*_CONV1D, "embedding"),
               tensors=(_T("tinylora_A", "min(r, inputs, outputs), inputs", "not embedding"),
                        _T("tinylora_B", "outputs, min(r, inputs, outputs)", "not embedding"),
                        _T("tinylora_A", "min(r, inputs, outputs), outputs"),
                        _T("tinylora_B", "inputs, min(r, inputs, outputs)"),
                        _T("tinylora_P", "u, min(r, inputs, outputs), min(r, inputs, outputs)", "save_projection"),
                        _shared("tinylora_v.#", "u", numbers="max(1, round(targets * (1 - weight_tying)))"))),
    PeftMethod("TRAINABLE_TOKENS", ("trainable_tokens_delta", "token_adapter.trainable_tokens_delta"),
               tensors=(_T("trainable_tokens_delta", "length(token_indices), outputs"),), kinds=("embedding",),
               fused_by="registry"),
    PeftMethod("UNILORA", ("unilora_",), ("unilora_",), kinds=_CONV1D, names_targets="save_indices",
               needs_values="True",
               tensors=(_shared("unilora_theta_d", "theta_d_length"),
                        *(_T(f"unilora_{part}_{half}", shape, "save_indices") for part in ("indices", "scales")
                          for half, shape in (("A", "r, inputs"), ("B", "outputs, r"))))),
    # vblora/model.py _remap_adapter_state_dict_for_load scatters these into logits of 32 bits
    PeftMethod("VBLORA", ("vblora_",), ("vblora_vector_bank",), kinds=_CONV1D, float32_only=("_topk_weights",),
               tensors=(*(_T(f"vblora_logits_{half}{end}", f"{shape}, {last}", condition)
                          for half, shape in (("A", "r, inputs // vector_length"), ("B", "outputs // vector_length, r"))
                          for end, last, condition in (("", "num_vectors", "not save_only_topk_weights"),
                                                       ("_topk_indices", "topk", "save_only_topk_weights"),
                                                       ("_topk_weights", "topk - 1", "save_only_topk_weights"))),
                        _shared("vblora_vector_bank", "num_vectors, vector_length")),
               needs=("inputs % vector_length == 0", "outputs % vector_length == 0")),
    PeftMethod("VERA", ("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B"), title="VeRA", kinds=_CONV1D,
               fused_by="peft",
               tensors=(_T("vera_lambda_b", "outputs"), _T("vera_lambda_d", "r"),
                        _shared("vera_A", "r, max_inputs", "save_projection"),
                        _shared("vera_B", "max_outputs, r", "save_projection"))),
    PeftMethod("WAVEFT", ("waveft_",), kinds=_CONV1D,
               tensors=(_T("waveft_spectrum", "any", "proportional_parameters"), _T("waveft_spectrum", "n_frequency")),
               needs=("n_frequency <= inputs * outputs",)),
    PeftMethod("XLORA", (), ("internal_xlora_classifier.",), needs_values="True", mergeable=False),
)  # fmt: skip
METHODS: Mapping[str, PeftMethod] = {row.name: row for row in _ROWS}


def find(name: str) -> PeftMethod:
    """The row of a method. A name without a row gives a row that knows nothing."""
    return METHODS.get(name) or PeftMethod(name)


LORA_VARIANTS: Mapping[str, str] = {
    "use_qalora": "QA-LoRA pools the inputs",
    "use_bdlora": "BD-LoRA has block-diagonal factors",
    "kasa_config": "KaSA changes the base's weights",
    "monteclora_config": "MonteCLoRA samples its factors",
    "arrow_config": "Arrow routes between several adapters",
}
"""Field of a LoRA configuration → what its factors mean instead of a plain update."""

CLASSIFYING_TASKS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
TASKS = frozenset({"CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"})

CODE_FIELDS = frozenset(
    {"auto_map", "trust_remote_code", "_attn_implementation_internal", "attn_implementation", "custom_pipelines",
     "custom_generate", "code_revision", "remote_code"}
)  # fmt: skip
"""Fields that make some loader fetch or import code. Refused at any depth, whatever they hold."""


def code_references(value: Any) -> Iterator[str]:
    """Yield the path of each field in `CODE_FIELDS`, at any depth of a JSON value."""
    return (location for location, key, _ in walk(value) if key in CODE_FIELDS)


CODE_LIBRARIES = frozenset({"transformers", "diffusers", "peft", "torch"})
"""What `auto_mapping.parent_library` may name, as the first part of a dotted module."""

PATH_ENDINGS = ("_file", "_path", "_dir", "_folder", "_filename")
"""A field with such a name makes PEFT open what it holds."""

NOT_PATHS = frozenset({"base_model_name_or_path", "tokenizer_name_or_path"})
