"""`FileFacts`: what an adapter's weights file says by itself, where no PEFT configuration explains it.

What the file does not tell is None, 0 or empty, never a guess. scale = alpha / rank for every format but mlx, which
writes the multiplier itself. `claims` are the uploader's metadata, without private texts.
"""

from collections.abc import Mapping

from registry.adapters.formats import Format
from registry.adapters.peft.config import AdapterConfig
from registry.adapters.safetensors import FLOATS, TensorInfo
from registry.model import FrozenModel


class FileModule(FrozenModel):
    """One module that is updated: [out_features, in_features], 0 where the file does not tell.

    `rank` 0: no rank (a full difference); `alpha` None: unknown. `is_conv`: stored as a convolution, `in_features`
    then counts channels times the kernel where the format stores them so, and `kernel` is that of a pair which has one.
    `groups`: of PEFT's pair on a convolution in groups, whose B has rank / groups columns.
    `a` and `b` name the tensors of a plain pair
    (A [rank, in], B [out, rank]; `is_turned`: [in, rank] and [rank, out]), empty for any other method.
    `is_half`: one of the two is missing, or both are and something that belongs to them is there. `fault`: what else
    makes the update impossible, in words.
    """

    path: str
    rank: int = 0
    alpha: float | None = None
    in_features: int = 0
    out_features: int = 0
    is_conv: bool = False
    kernel: tuple[int, ...] = ()
    groups: int = 1
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

    `targets`: component → which modules its PEFT configuration in the metadata targets. `magnitudes_absent`: the
    paths without one where other modules of the model have DoRA.

    `problems` are what engines stumble over, as codes: `lora.adapter_name_inside`, `lora.pair_incomplete`,
    `lora.rank_differs_from_config`, `image.no_control_norms` (Flux names of Black Forest Labs without the scales of its
    norms, by which loaders know a control adapter), `image.dora_scale` (DoRA under kohya's name), `image.bias` (on
    lora_B), `image.foreign_names` (diffusers' names of modules after ComfyUI's or kohya's prefix) and
    `image.scale_in_metadata` (an alpha that no tensor states).
    """

    format: Format
    method: str
    file: str = ""
    family: str = ""
    family_evidence: str = ""
    components: tuple[str, ...] = ()
    modules: tuple[FileModule, ...] = ()
    has_dora: bool = False
    has_convolutions: bool = False
    alpha_rule: str = ""
    trigger_words: str = ""
    claims: dict[str, str] = {}
    targets: dict[str, AdapterConfig] = {}
    magnitudes_absent: tuple[str, ...] = ()
    private_texts: tuple[str, ...] = ()
    base_claimed: str = ""
    dtypes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    tensors: int = 0
    parameters: int = 0
    size_bytes: int = 0

    @property
    def max_rank(self) -> int:
        """The largest rank of a module; 0 without modules."""
        return max((m.rank for m in self.modules), default=0)


_PAIRS = (
    ("lora_A", "lora_B", ""), ("lora_down", "lora_up", ""), ("down", "up", ""), ("lora_a", "lora_b", ""),
    ("hada_w1_b", "hada_w1_a", "hada_t1"), ("hada_w2_b", "hada_w2_a", "hada_t2"),
    ("lokr_w1_b", "lokr_w1_a", ""), ("lokr_w2_b", "lokr_w2_a", "lokr_t2"),
)  # fmt: skip
"""The right factor [rank, in], the left one [out, rank], and the core that stores them otherwise."""
_TOGETHER = (("hada_w1_b", "hada_w2_b"), ("lokr_w1", "lokr_w2"))
"""What makes no update without the other: LoHa's and LoKr's two matrices, each whole or as factors."""
Shape = tuple[int, ...]
_NUMBERS = FLOATS | {"Q8_0"}
_NO_NUMBERS = ("alpha", "indices", "size")


def groups_of(halves: Mapping[str, TensorInfo]) -> int:
    """In how many groups PEFT's pair (`_ConvNd`) splits a convolution: A's rows over B's columns; 1 without groups."""
    a, b = (next((i.shape for h, i in halves.items() if h == f"lora_{letter}.weight"), ()) for letter in "AB")
    is_grouped = min(len(a), len(b)) > 2 and b[1] and a[0] % b[1] == 0 and b[0] % (a[0] // b[1]) == 0
    return a[0] // b[1] if is_grouped else 1


def fault_of_factors(halves: Mapping[str, TensorInfo], *, turned: bool = False) -> str:
    """The fault in words, empty without one. `turned`: mlx's [in, rank] and [rank, out]."""
    for half, info in halves.items():
        if info.elements == 0:
            return f"{half} is empty: it was saved while another process held its values"
        if info.dtype not in _NUMBERS and not half.endswith(_NO_NUMBERS):
            return f"{half} holds {info.dtype}, and weights are floating-point numbers"
    shapes = {half.removesuffix(".weight").rpartition(".")[2]: info.shape for half, info in halves.items()}
    for right, left_factor, core in _PAIRS:
        if (right in shapes) != (left_factor in shapes):
            return f"{right if right in shapes else left_factor} lacks its other half"
        if right not in shapes or core in shapes or min(len(shapes[right]), len(shapes[left_factor])) < 2:
            continue
        ranks = (shapes[right][1], shapes[left_factor][0]) if turned else (shapes[right][0], shapes[left_factor][1])
        if ranks[0] != ranks[1] * groups_of(halves):
            return f"its factors have ranks {ranks[0]} and {ranks[1]}"
        if fault := _fault_of_magnitude(shapes, shapes[right], shapes[left_factor], turned=turned):
            return fault
    for first, other in _TOGETHER:
        if any(name.startswith(first) for name in shapes) != any(name.startswith(other) for name in shapes):
            return f"{first[:7]} and {other[:7]} belong together, and one is missing"
    return ""


def _fault_of_magnitude(shapes: Mapping[str, Shape], right: Shape, left_factor: Shape, *, turned: bool) -> str:
    """DoRA has one number for each output. LyCORIS's `dora_scale` may have one for each input instead."""
    outputs, inputs = (left_factor[1], right[0]) if turned else (left_factor[0], right[1])
    ones = (1,) * (len(left_factor) - 2)
    of_peft = [(1, outputs, *ones) if ones else (outputs,)]
    for name, expected in (
        ("lora_magnitude_vector", of_peft), ("magnitude", of_peft), ("m", of_peft if turned else []),
        ("dora_scale", [(outputs, 1, *ones), (1, inputs, *ones)]),
    ):  # fmt: skip
        if expected and name in shapes and shapes[name] not in expected:
            return f"{name} has shape {list(shapes[name])}, and its factors have {outputs} outputs"
    return ""
