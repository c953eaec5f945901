"""What PEFT configurations may say: methods, tasks, field names, and the fields that name code or files.

Data, checked against PEFT 0.21.2. A method of a newer PEFT starts with a row here.

Invariants
- A method or task outside these sets is refused: nothing downstream could say what its tensors mean.
- A field outside `FIELDS` is only warned about, because PEFT grows some with every release.

Example
    >>> "LORA" in METHODS and TENSOR_MARKS["IA3"] == ("ia3_l",)
    True
"""

from __future__ import annotations

LORA_LIKE = frozenset({"LORA", "ADALORA"})
"""Methods whose tensors are pairs `lora_A`, `lora_B`."""

PROMPTS = frozenset({"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"})
"""Methods that put virtual tokens before the text and store them as `prompt_embeddings`."""

TENSOR_MARKS: dict[str, tuple[str, ...]] = {
    "ADAMSS": ("adamss_",),
    "ADAPTION_PROMPT": ("adaption_",),
    "BEFT": ("beft_",),
    "BOFT": ("boft_R", "boft_s"),
    "BONE": ("bone_",),
    "C3A": ("c3a_",),
    "DEFT": ("deft_",),
    "DELORA": ("delora_",),
    "FOURIERFT": ("fourierft_",),
    "FROD": ("frod_",),
    "GLORA": ("glora_",),
    "GRALORA": ("gralora_",),
    "HIRA": ("hira_",),
    "HRA": ("hra_",),
    "IA3": ("ia3_l",),
    "LILY": ("lily_",),
    "LN_TUNING": ("ln_tuning_layers.",),
    "LOHA": ("hada_",),
    "LOKR": ("lokr_",),
    "MISS": ("miss_block",),
    "OFT": ("oft_R.",),
    "OSF": ("osf_",),
    "PEANUT": ("peanut_",),
    "POLY": ("poly_",),
    "PSOFT": ("psoft_",),
    "PVERA": ("pvera_",),
    "RANDLORA": ("randlora_",),
    "ROAD": ("road_",),
    "SHADOW": ("shadow_",),
    "SHIRA": ("shira_weight", "shira_indices"),
    "SUPERTUNING": ("supertuning_",),
    "TINYLORA": ("tinylora_",),
    "TRAINABLE_TOKENS": ("trainable_tokens_delta", "token_adapter.trainable_tokens_delta"),
    "UNILORA": ("unilora_",),
    "VBLORA": ("vblora_",),
    "VERA": ("vera_lambda_b", "vera_lambda_d"),
    "WAVEFT": ("waveft_",),
}
"""Method → how its tensors' names go on after the module's path. Any other name is a stranger."""

SHARED_MARKS: dict[str, tuple[str, ...]] = {
    "VERA": ("vera_A", "vera_B"),
    "PVERA": ("pvera_A", "pvera_B"),
    "RANDLORA": ("randlora_A", "randlora_B"),
    "FROD": ("frod_",),
    "VBLORA": ("vblora_vector_bank",),
    "UNILORA": ("unilora_",),
    "LILY": ("lily_",),
    "SHADOW": ("shadow_backbone.",),
    "TINYLORA": ("tinylora_v",),
    "XLORA": ("internal_xlora_classifier.",),
}
"""Method → names of tensors that all modules share, directly under `base_model.`."""

PROMPT_TENSORS: dict[str, tuple[str, ...]] = {
    "MULTITASK_PROMPT_TUNING": ("prompt_embeddings", "prefix_task_cols", "prefix_task_rows"),
}
"""What a method of `PROMPTS` stores, where it is more than `prompt_embeddings`."""

APART = frozenset({"ADAPTION_PROMPT", "UNILORA", "XLORA"})
"""Methods whose tensors do not say which targets they are for, so that none can be missed."""

METHODS = LORA_LIKE | PROMPTS | frozenset(TENSOR_MARKS) | frozenset(SHARED_MARKS)

TASKS = frozenset({"CAUSAL_LM", "SEQ_CLS", "SEQ_2_SEQ_LM", "TOKEN_CLS", "QUESTION_ANS", "FEATURE_EXTRACTION"})

CODE_FIELDS = frozenset(
    {"auto_map", "trust_remote_code", "_attn_implementation_internal", "attn_implementation", "custom_pipelines",
     "custom_generate", "code_revision", "remote_code"}
)  # fmt: skip
"""Fields that make some loader fetch or import code. Refused at any depth, whatever they hold."""

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
