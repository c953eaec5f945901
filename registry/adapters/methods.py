"""PEFT's methods, tasks and field names (0.21.2), and the fields that name code or files.

A method of a newer PEFT is a row here and, where headers show its shapes, a rule in `expected_shape` of
compat/modules.py; reading, compat check, merging and reference page follow the row. A method or task outside these
tables is refused; a field outside `FIELDS` is a warning, because every release of PEFT adds some.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from registry.strict.fields import walk


@dataclass(frozen=True, slots=True)
class PeftMethod:
    """One value of `peft_type`, and everything the registry knows about it.

    `marks`: how names of its tensors continue after the path of their module. `shared_marks`: names of tensors that all
    modules share, directly under `base_model.`. A prompt method stores exactly the tensors named by `marks`.
    `pair_marks`: of a method with factor pairs, every such name and its role: a `TensorRole` as text. The rank is `r`
    and the patterns, and alpha is `lora_alpha`. `rank_from_tensors`: the tensors alone say the rank.
    `names_targets`: its tensors say which targets they belong to, so a missing one is found.
    `shapes_known`: registry/compat/modules.py checks the shapes of its tensors.
    `fused_by`: who writes its update into the base's weights; empty: merging/recipes.py refuses to fuse it.
    `changes_weights`: its effect equals some change of weights. `replaces_weights`: loading it replaces base weights.
    `combinable`: it has a low-rank weighted sum. `hot_swappable`: it can be swapped on a model that stays loaded.
    """

    name: str
    marks: tuple[str, ...] = ()
    shared_marks: tuple[str, ...] = ()
    title: str = ""
    pair_marks: Mapping[str, str] = field(default_factory=dict)
    rank_from_tensors: bool = False
    is_prompt: bool = False
    names_targets: bool = True
    shapes_known: bool = False
    fused_by: Literal["", "registry", "peft"] = ""
    changes_weights: bool = True
    replaces_weights: bool = False
    combinable: bool = False
    hot_swappable: bool = False

    @property
    def has_pairs(self) -> bool:
        return bool(self.pair_marks)

    def mark_of(self, role: str) -> str:
        """The first name of the tensor with this role, such as `lora_A.weight`."""
        return next(mark for mark, its_role in self.pair_marks.items() if its_role == role)


def _prompt(name: str, *more: str) -> PeftMethod:
    """A method that puts virtual tokens before the text."""
    return PeftMethod(name, ("prompt_embeddings", *more), is_prompt=True, changes_weights=False)


_LORA_PAIR = {
    "lora_A.weight": "a", "lora_B.weight": "b", "lora_embedding_A": "a", "lora_embedding_B": "b", "lora_B.bias": "bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
}  # fmt: skip
_ROWS = (
    PeftMethod("LORA", title="LoRA", pair_marks=_LORA_PAIR, shapes_known=True, fused_by="registry", combinable=True,
               hot_swappable=True),
    PeftMethod("ADALORA", title="AdaLoRA", pair_marks={"lora_A": "a", "lora_B": "b", "lora_E": "piece"},
               rank_from_tensors=True, shapes_known=True, fused_by="registry"),
    PeftMethod("ADAMSS", ("adamss_",)),
    PeftMethod("ADAPTION_PROMPT", ("adaption_",), names_targets=False, changes_weights=False),
    PeftMethod("BEFT", ("beft_",)),
    PeftMethod("BOFT", ("boft_R", "boft_s"), shapes_known=True, fused_by="peft"),
    PeftMethod("BONE", ("bone_",)),
    PeftMethod("C3A", ("c3a_",)),
    _prompt("CARTRIDGE"),
    _prompt("CPT"),
    PeftMethod("DEFT", ("deft_",)),
    PeftMethod("DELORA", ("delora_",)),
    PeftMethod("FOURIERFT", ("fourierft_",)),
    PeftMethod("FROD", ("frod_",), ("frod_",)),
    PeftMethod("GLORA", ("glora_",)),
    PeftMethod("GRALORA", ("gralora_",)),
    PeftMethod("HIRA", ("hira_",)),
    PeftMethod("HRA", ("hra_",), shapes_known=True),
    PeftMethod("IA3", ("ia3_l",), shapes_known=True, fused_by="registry"),
    PeftMethod("LILY", ("lily_",), ("lily_",)),
    PeftMethod("LN_TUNING", ("ln_tuning_layers.",), shapes_known=True, fused_by="registry", replaces_weights=True),
    PeftMethod("LOHA", ("hada_",), title="LoHa", shapes_known=True, fused_by="peft"),
    PeftMethod("LOKR", ("lokr_",), title="LoKr", shapes_known=True, fused_by="peft"),
    PeftMethod("MISS", ("miss_block",), shapes_known=True, fused_by="peft"),
    _prompt("MULTITASK_PROMPT_TUNING", "prefix_task_cols", "prefix_task_rows"),
    PeftMethod("OFT", ("oft_R.",), shapes_known=True, fused_by="peft"),
    PeftMethod("OSF", ("osf_",)),
    PeftMethod("PEANUT", ("peanut_",)),
    PeftMethod("POLY", ("poly_",), changes_weights=False),
    _prompt("PREFIX_TUNING"),
    _prompt("PROMPT_TUNING"),
    PeftMethod("PSOFT", ("psoft_",)),
    PeftMethod("PVERA", ("pvera_",), ("pvera_A", "pvera_B")),
    _prompt("P_TUNING"),
    PeftMethod("RANDLORA", ("randlora_",), ("randlora_A", "randlora_B"), fused_by="peft"),
    PeftMethod("ROAD", ("road_",), shapes_known=True),
    PeftMethod("SHADOW", ("shadow_",), ("shadow_backbone.",)),
    PeftMethod("SHIRA", ("shira_weight", "shira_indices"), shapes_known=True, fused_by="peft"),
    PeftMethod("SUPERTUNING", ("supertuning_",)),
    PeftMethod("TINYLORA", ("tinylora_",), ("tinylora_v",)),
    PeftMethod("TRAINABLE_TOKENS", ("trainable_tokens_delta", "token_adapter.trainable_tokens_delta"),
               shapes_known=True, fused_by="registry"),
    PeftMethod("UNILORA", ("unilora_",), ("unilora_",), names_targets=False),
    PeftMethod("VBLORA", ("vblora_",), ("vblora_vector_bank",)),
    PeftMethod("VERA", ("vera_lambda_b", "vera_lambda_d"), ("vera_A", "vera_B"),
               title="VeRA", shapes_known=True, fused_by="peft"),
    PeftMethod("WAVEFT", ("waveft_",)),
    PeftMethod("XLORA", (), ("internal_xlora_classifier.",), names_targets=False, changes_weights=False),
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

_FIELD_NAMES = """
    ab_svd_init act_fn adapter_layers adapter_len adapters alora_invocation_tokens alpha alpha_pattern apply_GS
    arrow_config asa_importance_beta asa_schedule_exponent asa_target_subspaces asa_uncertainty_beta auto_mapping
    auxiliary_loss_weight base_model_class base_model_name_or_path beta1 beta2 bias block_share block_size
    block_size_pattern boft_block_num boft_block_size boft_dropout boft_n_butterfly_factor cayley_neumann_eps coft
    config_A_B config_C config_D_E corda_config cpt_mask cpt_token_ids cpt_tokens_type_mask d_initial decompose_both
    decompose_factor decomposition_method deft_dropout delora_lambda deltaT depth effective_rank enable_lora
    enable_softmax enable_softmax_topk encoder_dropout encoder_hidden_size encoder_num_layers
    encoder_reparameterization_type ensure_weight_tying eps eva_config exclude_modules fan_in_fan_out
    feedforward_modules final_warmup frod_dropout generator_seed global_scaling_weight gralora_dropout gralora_k
    group_size hidden_size hira_dropout hybrid_r inference_mode init_ia3_weights init_logits_std init_lora_weights
    init_r init_scale init_theta_d_bound init_v_bound init_vector_bank_bound init_warmup init_weights kasa_config
    lambda_pattern layer_replication layers_pattern layers_to_transform layerwise_scalings loftq_config lora_alpha
    lora_bias lora_dropout lora_ga_config mask_interval mask_type megatron_config megatron_core merge_weights mini_r
    miss_dropout module_dropout modules_to_save monteclora_config n_frequency n_frequency_pattern n_skills n_splits
    n_tasks num_B num_attention_heads num_cayley_neumann_terms num_frozen_tokens num_layers num_ranks num_subspaces
    num_tasks num_transformer_submodules num_vectors num_virtual_tokens oft_block_size opt_loss_decay_factor
    opt_projection_epsilon opt_projection_format_epsilon opt_weighted_loss_type orth_reg_weight para parent_library
    peft_type peft_version poly_type prefix_projection progressbar proj_seed projection_prng_key projection_seed
    prompt_tuning_init prompt_tuning_init_state_dict_path prompt_tuning_init_task prompt_tuning_init_text
    proportional_parameters psoft_alpha psoft_dropout psoft_mag_a psoft_mag_b psoft_orth psoft_svd
    psoft_svd_lowrank_niter pvera_dropout qalora_group_size r randlora_alpha randlora_dropout random_loc_seed
    random_seed rank_dropout rank_dropout_scale rank_pattern regularization_alpha revision runtime_config
    sample_at_inference save_indices save_only_topk_weights save_precomputed_indices save_projection scaling
    scaling_pass_value select_top shadow_alpha shadow_dropout shadow_hidden_size shadow_intermediate_size
    shadow_model shadow_num_attention_heads shadow_num_hidden_layers share_embeddings softmax_temperature sparse
    sparse_rate sparsity stride_A subspace_rank svd_threshold target_modules target_parameters target_r
    target_svd_config task_type tfinal theta_d_length tinit tinylora_dropout token_dim token_indices
    tokenizer_kwargs tokenizer_name_or_path top_k_lora topk total_step trainable_token_indices u unilora_dropout
    update_hidden_size use_asa use_bdlora use_cayley_neumann use_dora use_dynamic_rank use_effective_conv2d use_idwt
    use_qalora use_rslora use_trainable_adapters variant vblora_dropout vector_length velora_config vera_dropout
    very_sparse wavelet_family weight_tying xlora_depth xlora_dropout_p xlora_size
"""
FIELDS: frozenset[str] = frozenset(_FIELD_NAMES.split())
"""Every field that a configuration of PEFT 0.21 (and some older ones) may have."""
