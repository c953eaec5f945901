"""`FileFacts`: what an adapter's weights file says by itself, where no PEFT configuration explains it.

Invariants
- Structure comes from names and shapes. `claims` is the uploader's metadata, kept apart, without private texts.
- What the file does not tell is None, 0 or empty: an alpha that nobody wrote is not guessed.
- scale = alpha / rank for every format but mlx, which writes the multiplier itself.

Example
    >>> FileModule(path="unet.mid_block.attn", rank=4, alpha=2.0).scale
    0.5
"""

from __future__ import annotations

from registry.model import FrozenModel


class FileModule(FrozenModel):
    """One module that is updated: [out_features, in_features], 0 where the file does not tell.

    `rank` 0: no rank (a full difference); `alpha` None: unknown. `is_conv`: stored as a convolution, `in_features`
    then counts channels times the kernel where the format stores them so. `a` and `b` name the tensors of a plain pair
    (A [rank, in], B [out, rank]; `is_turned`: [in, rank] and [rank, out]), empty for any other method.
    `is_half`: one of the two is missing. `fault`: what else makes the update impossible, in words.
    """

    path: str
    rank: int = 0
    alpha: float | None = None
    in_features: int = 0
    out_features: int = 0
    is_conv: bool = False
    multiplier: float | None = None
    a: str = ""
    b: str = ""
    is_turned: bool = False
    is_half: bool = False
    fault: str = ""

    @property
    def scale(self) -> float | None:
        """What the product of the factors is multiplied by; None if the file does not tell."""
        if self.multiplier is not None:
            return self.multiplier
        return self.alpha / self.rank if self.alpha is not None and self.rank else None


class FileFacts(FrozenModel):
    """Everything that header, alphas and metadata tell. `private_texts` names the metadata that was left out.

    `problems` are what engines stumble over, as codes: `lora.adapter_name_inside`, `lora.pair_incomplete`,
    `image.no_control_norms` (Flux names of Black Forest Labs without the scales of its norms, by which loaders know a
    control adapter), `image.text_without_out` (a kohya text encoder without its `out_proj`).
    """

    format: str
    method: str
    file: str = ""
    family: str = ""
    family_evidence: str = ""
    components: tuple[str, ...] = ()
    modules: tuple[FileModule, ...] = ()
    has_dora: bool = False
    has_convolutions: bool = False
    has_alpha_tensors: bool = False
    alpha_rule: str = ""
    trigger_words: str = ""
    claims: dict[str, str] = {}
    private_texts: tuple[str, ...] = ()
    base_claimed: str = ""
    dtypes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    size_bytes: int = 0

    @property
    def max_rank(self) -> int:
        return max((m.rank for m in self.modules), default=0)
