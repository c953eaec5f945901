"""Which modules of the base a tool means by the path that it writes into a weights file.

    mlx          the model's own path
    torchtune    layers.0.attn.output_proj             → model.layers.0.self_attn.o_proj
    gguf         blk.0.attn_output                     → model.layers.0.self_attn.o_proj
    diffusers    unet.….to_q                           the pipeline's own path
    kohya        lora_unet_down_blocks_0_…_to_q        → the one path that reads so with its dots as underscores
    comfy        text_encoders.clip_g.transformer.…     → text_encoder_2.…
    bare         transformer_blocks.0.attn.to_q         → transformer.transformer_blocks.0.attn.to_q
    Flux         double_blocks.0.img_attn.qkv          → three modules of transformer_blocks.0.attn

Several modules for one path are the parts of one fused matrix, in the order of its rows.
"""

import re
from collections.abc import Callable, Iterable

from registry.adapters.formats import IMAGE_COMPONENTS, TORCHTUNE, Format

_KOHYA_COMPONENTS: tuple[tuple[str, str], ...] = (
    ("lora_te1_", "text_encoder"), ("lora_te2_", "text_encoder_2"), ("lora_te3_", "text_encoder_3"),
    ("lora_te3_", "text_encoder_2"), ("lora_te_", "text_encoder"), ("lora_transformer_", "transformer"),
    ("lora_prior_unet_", "prior"), ("lora_unet_", "unet"), ("lora_unet_", "transformer"), ("lycoris_", "unet"),
    ("lycoris_", "transformer"), ("lycoris_", "text_encoder"),
)  # fmt: skip
_COMFY_ENCODERS = {
    "clip_l": ("text_encoder",), "clip_g": ("text_encoder_2",), "t5xxl": ("text_encoder_2", "text_encoder_3"),
}  # fmt: skip
"""ComfyUI's name of a text encoder → what pipelines call it: Flux and Stable Diffusion 3 have T5 in other places."""
_TORCHTUNE = {
    "attn.q_proj": "self_attn.q_proj", "attn.k_proj": "self_attn.k_proj", "attn.v_proj": "self_attn.v_proj",
    "attn.output_proj": "self_attn.o_proj", "mlp.w1": "mlp.gate_proj", "mlp.w2": "mlp.down_proj",
    "mlp.w3": "mlp.up_proj",
}  # fmt: skip
_GGUF = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_WHOLE = {"output": "lm_head", "tok_embeddings": "model.embed_tokens", "token_embd": "model.embed_tokens"}
FLUX_DOUBLE: dict[str, tuple[str, ...]] = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn.proj": ("attn.to_out.0",),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn.proj": ("attn.to_add_out",),
    "img_mlp.0": ("ff.net.0.proj",), "img_mlp.2": ("ff.net.2",), "img_mod.lin": ("norm1.linear",),
    "txt_mlp.0": ("ff_context.net.0.proj",), "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
    "processor.qkv_lora1": ("attn.to_q", "attn.to_k", "attn.to_v"), "processor.proj_lora1": ("attn.to_out.0",),
    "processor.qkv_lora2": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "processor.proj_lora2": ("attn.to_add_out",),
}  # fmt: skip
FLUX_SINGLE: dict[str, tuple[str, ...]] = {
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"), "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",), "processor.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "processor.proj": ("proj_out",),
}  # fmt: skip
FLUX_WHOLE: dict[str, tuple[str, ...]] = {
    "img_in": ("x_embedder",), "txt_in": ("context_embedder",), "final_layer.linear": ("proj_out",),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
    **{
        f"{theirs}.{layer}": (f"time_text_embed.{ours}_embedder.linear_{number}",)
        for theirs, ours in (("time_in", "timestep"), ("vector_in", "text"), ("guidance_in", "guidance"))
        for number, layer in ((1, "in_layer"), (2, "out_layer"))
    },
}  # fmt: skip
_SGM = re.compile(r"(?:lora_unet_|diffusion_model\.)(input|output|middle)_blocks?[_.](\d+)[_.](?:(\d+)[_.])?(.+)\Z")
_SGM_INNER = (
    ("in_layers_2", "conv1"), ("out_layers_3", "conv2"), ("emb_layers_1", "time_emb_proj"),
    ("skip_connection", "conv_shortcut"),
)  # fmt: skip
_SGM_WHOLE = {
    "input_blocks_0_0": "conv_in", "out_2": "conv_out", "time_embed_0": "time_embedding_linear_1",
    "time_embed_2": "time_embedding_linear_2", "label_emb_0_0": "add_embedding_linear_1",
    "label_emb_0_2": "add_embedding_linear_2",
}  # fmt: skip
_WAN = (
    ("self_attn", "attn1"), ("cross_attn", "attn2"), (r"\.(q|k|v)\Z", r".to_\1"), (r"\.o\Z", ".to_out.0"),
    (r"\.(k|v)_img\Z", r".add_\1_proj"), (r"\.ffn\.0\Z", ".ffn.net.0.proj"), (r"\.ffn\.2\Z", ".ffn.net.2"),
    (r"\Atime_projection\.1", "condition_embedder.time_proj"), (r"\Ahead\.head", "proj_out"),
    (r"\A(text|time)_embedding\.0", r"condition_embedder.\1_embedder.linear_1"),
    (r"\A(text|time)_embedding\.2", r"condition_embedder.\1_embedder.linear_2"),
)  # fmt: skip
"""Names of Wan's own code → those of diffusers."""
_WAN_FLAT = re.compile(r"lora_unet_blocks_(\d{1,4})_(self_attn|cross_attn|ffn)_(\w+)\Z")
"""As musubi-tuner writes them."""
_RESNET = re.compile(r"unet\.down_blocks\.0\.resnets\.(\d+)\.")
_LAYER = re.compile(r"(?:layers|blk)\.(\d{1,6})\.(.+)\Z")
_OLD = re.compile(r"(?P<at>.+?)(?:\.processor|(?<=\.self_attn))\.to_(?P<leaf>q|k|v|out)(?:_lora)?\Z")
_OLD_TEXT = re.compile(r"(?P<at>text_encoder(?:_2)?\..+?)(?:_lora(?:_linear_layer)?|_lora_linear_layer)\Z")


def layers_per_block(modules: Iterable[str]) -> int:
    """The layers in each block of the U-Net with these modules; 0 without one."""
    return max((int(match[1]) for path in modules if (match := _RESNET.match(path))), default=-1) + 1


class Paths:
    """The modules of one base under the names of one format."""

    def __init__(self, format: Format, modules: Iterable[str]) -> None:
        self._format = format
        self._known = set(modules)
        self._flat: dict[str, str] = {}
        if format.paths in ("kohya", "comfy"):
            for path in self._known:
                self._flat.setdefault(_flat(path), path)
        self._resnets = layers_per_block(self._known)

    def of(self, name: str) -> tuple[str, ...] | None:
        """The paths that a name in the file means, as the base spells them; None if the format has no rule for it."""
        rule = _RULES.get(self._format.paths)
        resolved = rule(self, name) if rule else None
        return tuple(self._spelled(path) for path in resolved) if resolved else None

    def _spelled(self, path: str) -> str:
        """The path, with or without the `text_model.` that one version of transformers adds and another drops."""
        if path in self._known or not path.startswith("text_encoder"):
            return path
        head, _, rest = path.partition(".")
        bare = rest.removeprefix("text_model.")
        return next((p for p in (f"{head}.text_model.{bare}", f"{head}.{bare}") if p in self._known), path)

    def _text(self, name: str) -> tuple[str, ...] | None:
        if name in _WHOLE:
            return (_WHOLE[name],)
        match = _LAYER.match(name)
        inner = (_TORCHTUNE if self._format == TORCHTUNE else _GGUF).get(match[2]) if match else None
        return (f"model.layers.{match[1]}.{inner}",) if match and inner else None

    def _processors(self, name: str) -> tuple[str, ...]:
        match = _OLD.match(name)
        if match:
            at = match["at"] if match["at"].startswith(IMAGE_COMPONENTS) else f"unet.{match['at']}"
            if at.startswith("text_encoder"):
                return (f"{at}.{match['leaf']}_proj",)
            return (f"{at}.to_out.0" if match["leaf"] == "out" else f"{at}.to_{match['leaf']}",)
        text = _OLD_TEXT.match(name)
        return (text["at"] if text else name,)

    def _kohya(self, name: str) -> tuple[str, ...] | None:
        for prefix, component in _KOHYA_COMPONENTS:
            if name.startswith(prefix):
                rest = name.removeprefix(prefix)
                for tail in (rest, f"text_model_{rest}", rest.removeprefix("text_model_")):
                    path = self._flat.get(f"{component}_{tail}")
                    if path:
                        return (path,)
        if wan := _WAN_FLAT.match(name):
            return self._comfy(".".join(("blocks", wan[1], wan[2], wan[3])))
        return self._flux_flat(name) or self._sgm(name)

    def _flux(self, name: str) -> tuple[str, ...] | None:
        path = name.removeprefix("diffusion_model.")
        match = re.match(r"(double|single)_blocks\.(\d{1,4})\.(.+)\Z", path)
        if not match:
            resolved = FLUX_WHOLE.get(path)
            return tuple(f"transformer.{p}" for p in resolved) if resolved else None
        is_double = match[1] == "double"
        block = "transformer_blocks" if is_double else "single_transformer_blocks"
        inner = (FLUX_DOUBLE if is_double else FLUX_SINGLE).get(match[3])
        return tuple(f"transformer.{block}.{match[2]}.{p}" for p in inner) if inner else None

    def _comfy(self, name: str) -> tuple[str, ...] | None:
        encoder, _, inner = name.removeprefix("text_encoders.").partition(".transformer.")
        for component in _COMFY_ENCODERS.get(encoder, ()):
            if (path := self._spelled(f"{component}.{inner}")) in self._known:
                return (path,)
        path = name.removeprefix("diffusion_model.")
        for component in ("transformer", "unet"):
            if f"{component}.{path}" in self._known:
                return (f"{component}.{path}",)
        wan = path
        for theirs, ours in _WAN:
            wan = re.sub(theirs, ours, wan)
        if f"transformer.{wan}" in self._known:
            return (f"transformer.{wan}",)
        return self._flux(name) or self._sgm(name)

    def _flux_flat(self, name: str) -> tuple[str, ...] | None:
        match = re.match(r"lora_unet_(double|single)_blocks_(\d{1,4})_(.+)\Z", name)
        if not match:
            rest = name.removeprefix("lora_unet_")
            return next((self._flux(p) for p in FLUX_WHOLE if p.replace(".", "_") == rest), None)
        table = FLUX_DOUBLE if match[1] == "double" else FLUX_SINGLE
        inner = next((p for p in table if p.replace(".", "_") == match[3]), "")
        return self._flux(f"{match[1]}_blocks.{match[2]}.{inner}") if inner else None

    def _sgm(self, name: str) -> tuple[str, ...] | None:
        """Names of the original UNet (Stability's code): blocks are counted through, each with its sampler."""
        whole = _SGM_WHOLE.get(_flat(name.removeprefix("lora_unet_").removeprefix("diffusion_model.")), "")
        if path := self._flat.get(f"unet_{whole}"):
            return (path,)
        match = _SGM.match(name)
        if not match or not self._resnets:
            return None
        side, number, inner, rest = match[1], int(match[2]), match[3], match[4].replace(".", "_")
        each = self._resnets
        if side == "middle":
            at = "mid_block_attentions_0" if number == 1 else f"mid_block_resnets_{number // 2}"
        elif inner is None or (side == "input" and number == 0):
            return None
        elif side == "input":
            block, position = divmod(number - 1, each + 1)
            kind = "downsamplers_0" if position == each else f"{_kind(inner)}_{position}"
            at = f"down_blocks_{block}_{kind}"
        else:
            block, position = divmod(number, each + 1)
            attention = f"unet_up_blocks_{block}_attentions_{position}_"
            has = inner == "1" and any(flat.startswith(attention) for flat in self._flat)
            kind = f"{_kind(inner)}_{position}" if inner == "0" or has else "upsamplers_0"
            at = f"up_blocks_{block}_{kind}"
        for theirs, ours in _SGM_INNER:
            rest = rest.replace(theirs, ours)
        rest = re.sub(r"\A(?:op|conv)\Z", "conv", rest)
        path = self._flat.get(f"unet_{at}_{rest}")
        return (path,) if path else None


def _kind(inner: str) -> str:
    return "resnets" if inner == "0" else "attentions"


def _flat(path: str) -> str:
    return path.replace(".", "_")


_RULES: dict[str, Callable[[Paths, str], tuple[str, ...] | None]] = {
    "equal": lambda _paths, name: (name,), "bare": lambda _paths, name: (f"transformer.{name}",),
    "text": Paths._text, "processors": Paths._processors, "kohya": Paths._kohya, "flux": Paths._flux,
    "comfy": Paths._comfy,
}  # fmt: skip
"""`Format.paths` → what its names mean."""
