"""Bad weights files and configurations, by name, with the error and the reason that each must get.

    WEIGHTS   name → (bytes of adapter_model.safetensors, error code, dotted reason)
    CONFIGS   name → (fields over a good configuration or raw bytes, error code, dotted reason)

The numbers in the names are those of the rules in docs: every class of bad input has at least one entry.
Used at the domain level (tests/bad_inputs) and through the real API.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

from tests import samples

INVALID, LARGE, CONFIG = "TENSORS_INVALID", "SIZE_INVALID", "CONFIG_INVALID"
BadFile = tuple[bytes, str, str]


def _entry(shape: list[Any], offsets: list[Any], dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def _one(entry: Any, data: bytes = bytes(16), name: str = "a") -> bytes:
    return samples.raw_safetensors({name: entry}, data)


def _two(first: list[int], second: list[int], data: bytes) -> bytes:
    size = [(second[1] - second[0]) // 4]
    return samples.raw_safetensors({"a": _entry([2], first), "b": _entry(size, second)}, data)


def _zip() -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        archive.writestr("data.pkl", b"x")
    return target.getvalue()


_GOOD = _one(_entry([4], [0, 16]))
_TEXT = '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}'
_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 123\n"


def _many(count: int) -> bytes:
    """More tensors than allowed. They are counted before an entry is looked at, so the entries may be anything."""
    return samples.raw_safetensors("{" + ",".join(f'"{i}":0' for i in range(count)) + "}")


_MAKERS: dict[str, tuple[Callable[[], bytes] | bytes, str, str]] = {
    "01-empty-file": (b"", INVALID, "safetensors.header_invalid"),
    "02-seven-bytes": (bytes(7), INVALID, "safetensors.header_invalid"),
    "03-length-beyond-the-file": (struct.pack("<Q", 99) + b"{}", INVALID, "safetensors.header_invalid"),
    "04-length-2-to-64": (struct.pack("<Q", 2**64 - 1) + b"{}", INVALID, "safetensors.header_invalid"),
    "05-header-over-16-mib": (
        lambda: struct.pack("<Q", 2**24 + 8) + b"{}" + b" " * (2**24 + 6), LARGE, "safetensors.header_too_large"),
    "06-header-does-not-begin-with-a-brace": (
        samples.raw_safetensors(b" " + _TEXT.encode() + b"}", bytes(16)), INVALID, "safetensors.header_invalid"),
    "07-padded-with-nul": (
        samples.raw_safetensors(_TEXT.encode() + b"}\0\0", bytes(16)), INVALID, "safetensors.header_invalid"),
    "08-byte-order-mark": (
        samples.raw_safetensors(b"\xef\xbb\xbf" + _TEXT.encode() + b"}", bytes(16)),
        INVALID, "safetensors.header_invalid"),
    "08-utf-16": (
        samples.raw_safetensors((_TEXT + "}").encode("utf-16"), bytes(16)), INVALID, "safetensors.header_invalid"),
    "08-not-utf-8": (samples.raw_safetensors(b'{"\xff":1}'), INVALID, "safetensors.header_invalid"),
    "09-a-tensor-twice": (
        samples.raw_safetensors(_TEXT + ',"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}', bytes(16)),
        INVALID, "safetensors.duplicate_key"),
    "10-a-metadata-key-twice": (
        samples.raw_safetensors('{"__metadata__":{"x":"1","x":"2"},' + _TEXT[1:] + "}", bytes(16)),
        INVALID, "safetensors.duplicate_key"),
    "11-entry-as-list": (_one(["F32", [4], [0, 16]]), INVALID, "safetensors.entry_invalid"),
    "12-unknown-field": (_one({**_entry([4], [0, 16]), "extra": 1}), INVALID, "safetensors.entry_invalid"),
    "12-missing-field": (_one({"dtype": "F32", "shape": [4]}), INVALID, "safetensors.entry_invalid"),
    "13-negative-offset": (_one(_entry([4], [-16, 0])), INVALID, "safetensors.offsets_invalid"),
    "13-fractional-offset": (_one(_entry([4], [0, 16.0])), INVALID, "safetensors.offsets_invalid"),
    "13-offset-as-text": (_one(_entry([4], [0, "16"])), INVALID, "safetensors.offsets_invalid"),
    "13-three-offsets": (_one(_entry([4], [0, 8, 16])), INVALID, "safetensors.offsets_invalid"),
    "13-true-as-offset": (_one(_entry([4], [False, 16])), INVALID, "safetensors.offsets_invalid"),
    "13-falling-offsets": (_one(_entry([4], [16, 0])), INVALID, "safetensors.offsets_invalid"),
    "14-hole": (_two([0, 8], [12, 16], bytes(16)), INVALID, "safetensors.layout_invalid"),
    "14-overlap": (_two([0, 8], [4, 16], bytes(16)), INVALID, "safetensors.layout_invalid"),
    "14-trailing-bytes": (_GOOD + bytes(64), INVALID, "safetensors.layout_invalid"),
    "14-cut-file": (_GOOD[:-4], INVALID, "safetensors.offsets_invalid"),
    "15-zip-tail": (lambda: _GOOD + _zip(), INVALID, "safetensors.layout_invalid"),
    "16-shape-overflows": (_one(_entry([2**33, 2**33], [0, 16])), INVALID, "safetensors.size_invalid"),
    "17-size-is-not-the-bytes": (_one(_entry([5], [0, 16])), INVALID, "safetensors.size_invalid"),
    "18-empty-with-a-huge-side": (_one(_entry([0, 2**62], [0, 0]), b""), INVALID, "safetensors.shape_invalid"),
    "18-negative-side": (_one(_entry([-4], [0, 16])), INVALID, "safetensors.shape_invalid"),
    "19-65536-dimensions": (lambda: _one(_entry([1] * 65536, [0, 4]), bytes(4)), INVALID, "safetensors.shape_invalid"),
    "20-unknown-dtype": (_one(_entry([4], [0, 16], "F31")), INVALID, "safetensors.dtype_invalid"),
    "20-half-a-byte-dtype": (_one(_entry([32], [0, 16], "F4")), INVALID, "safetensors.dtype_invalid"),
    "20-dtype-as-number": (_one(_entry([4], [0, 16], 5)), INVALID, "safetensors.dtype_invalid"),
    "21-empty-name": (_one(_entry([4], [0, 16]), name=""), INVALID, "safetensors.tensor_name_invalid"),
    "21-nul-in-name": (_one(_entry([4], [0, 16]), name="a\0b"), INVALID, "safetensors.tensor_name_invalid"),
    "21-climbing-name": (_one(_entry([4], [0, 16]), name="../../x"), INVALID, "safetensors.tensor_name_invalid"),
    "21-long-name": (_one(_entry([4], [0, 16]), name="a" * 513), INVALID, "safetensors.tensor_name_invalid"),
    "21-deep-name": (_one(_entry([4], [0, 16]), name="a" + ".a" * 64), INVALID, "safetensors.tensor_name_invalid"),
    "21-look-alike-name": (_one(_entry([4], [0, 16]), name="lоra_A"), INVALID, "safetensors.tensor_name_invalid"),
    "22-number-in-metadata": (
        samples.raw_safetensors('{"__metadata__":{"x":1},' + _TEXT[1:] + "}", bytes(16)),
        INVALID, "safetensors.metadata_invalid"),
    "22-metadata-as-list": (
        samples.raw_safetensors('{"__metadata__":[],' + _TEXT[1:] + "}", bytes(16)),
        INVALID, "safetensors.metadata_invalid"),
    "23-200001-tensors": (lambda: _many(200_001), LARGE, "safetensors.too_many_tensors"),
    "24-100000-deep": (
        lambda: samples.raw_safetensors('{"a":' + "[" * 100_000 + "]" * 100_000 + "}"),
        INVALID, "safetensors.too_deep"),
    "25-lfs-pointer": (_POINTER, INVALID, "safetensors.not_safetensors"),
    "25-html": (b"<!DOCTYPE html><html><body>403 Forbidden</body></html>", INVALID, "safetensors.not_safetensors"),
    "25-gzip": (lambda: gzip.compress(_GOOD * 9, mtime=0), INVALID, "safetensors.not_safetensors"),
    "25-zip": (_zip, INVALID, "safetensors.not_safetensors"),
    "25-pickle": (lambda: pickle.dumps({"a": 1}), INVALID, "safetensors.not_safetensors"),
    "25-gguf": (b"GGUF" + bytes(60), INVALID, "safetensors.not_safetensors"),
    "26-no-tensors": (samples.raw_safetensors('{"__metadata__":{}}'), INVALID, "safetensors.empty"),
    "99-nan-in-the-header": (samples.raw_safetensors('{"a":NaN}'), INVALID, "safetensors.not_finite"),
}  # fmt: skip

WEIGHTS: dict[str, BadFile] = {
    name: (make() if callable(make) else make, code, reason) for name, (make, code, reason) in _MAKERS.items()
}

_GOOD_CONFIG = json.loads(samples.lora(samples.llama())[samples.CONFIG])
_HANG = "(a+)+$"
_CONFIGS: dict[str, tuple[dict[str, Any] | bytes, str]] = {
    "41-not-an-object": (b"[]", "config.invalid"),
    "41-not-json": (b"{'r': 8,", "config.invalid"),
    "42-a-key-twice": (b'{"peft_type":"LORA","r":8,"r":16}', "config.duplicate_key"),
    "43-nan": (b'{"peft_type":"LORA","r":8,"lora_alpha":NaN}', "config.not_finite"),
    "43-infinity": (b'{"peft_type":"LORA","r":8,"lora_alpha":-Infinity}', "config.not_finite"),
    "43-a-number-beyond-floats": (b'{"peft_type":"LORA","r":8,"lora_alpha":1e999}', "config.value_invalid"),
    "44-over-256-kib": (b"{" + b" " * (256 * 1024) + b"}", "config.too_large"),
    "45-auto-mapping-elsewhere": (
        {"auto_mapping": {"base_model_class": "X", "parent_library": "os"}}, "config.code_reference"),
    "45-auto-mapping-look-alike": (
        {"auto_mapping": {"base_model_class": "X", "parent_library": "transformers_x.y"}}, "config.code_reference"),
    "45-auto-mapping-as-text": ({"auto_mapping": "os.system"}, "config.code_reference"),
    "46-megatron-core": ({"megatron_core": "os"}, "config.code_reference"),
    "47-auto-map": ({"auto_map": {"AutoModel": "evil.py"}}, "config.code_reference"),
    "47-trust-remote-code": ({"tokenizer_kwargs": {"trust_remote_code": True}}, "config.code_reference"),
    "47-attention-kernel": ({"_attn_implementation_internal": "evil/kernels"}, "config.code_reference"),
    "45-auto-mapping-dunder": (
        {"auto_mapping": {"base_model_class": "__import__", "parent_library": "torch"}}, "config.code_reference"),
    "45-auto-mapping-private": (
        {"auto_mapping": {"base_model_class": "X", "parent_library": "torch.__builtins__"}}, "config.code_reference"),
    "48-tokenizer-share": ({"tokenizer_name_or_path": "\\\\evil\\share"}, "config.path_refused"),
    "48-tokenizer-climbs": ({"tokenizer_name_or_path": "../../x"}, "config.path_refused"),
    "48-tokenizer-url": ({"tokenizer_name_or_path": "https://evil.example/t"}, "config.path_refused"),
    "48-revision-climbs": ({"revision": "../../x"}, "config.value_invalid"),
    "48-revision-option": ({"revision": "--upload-pack=x"}, "config.value_invalid"),
    "48-version-markup": ({"peft_version": "<script>alert(1)</script>"}, "config.value_invalid"),
    "48-cache-file": ({"corda_config": {"cache_file": "/etc/passwd"}}, "config.path_refused"),
    "48-covariance-file": ({"corda_config": {"covariance_file": "x.pt"}}, "config.path_refused"),
    "48-state-dict-path": ({"prompt_tuning_init_state_dict_path": "a.bin"}, "config.path_refused"),
    "48-shadow-model": ({"peft_type": "SHADOW", "shadow_model": "/etc/passwd"}, "config.path_refused"),
    "48-xlora-adapters": ({"peft_type": "XLORA", "adapters": {"0": "me/x", "1": "../x"}}, "config.path_refused"),
    "49-base-climbs": ({"base_model_name_or_path": "../../secret"}, "config.base_model_invalid"),
    "49-base-absolute": ({"base_model_name_or_path": "/etc/passwd"}, "config.base_model_invalid"),
    "49-base-url": ({"base_model_name_or_path": "https://evil.example/m"}, "config.base_model_invalid"),
    "49-base-share": ({"base_model_name_or_path": "\\\\evil\\share"}, "config.base_model_invalid"),
    "49-base-nul": ({"base_model_name_or_path": "a\0b"}, "config.base_model_invalid"),
    "49-base-newline": ({"base_model_name_or_path": "a\nb"}, "config.base_model_invalid"),
    "49-base-bidi": ({"base_model_name_or_path": "a\u202eb"}, "config.base_model_invalid"),
    "49-base-look-alike": ({"base_model_name_or_path": "meta-llаma/x"}, "config.base_model_invalid"),
    "51-rank-0": ({"r": 0}, "config.value_invalid"),
    "51-rank-negative": ({"r": -1}, "config.value_invalid"),
    "51-rank-fraction": ({"r": 8.5}, "config.value_invalid"),
    "51-rank-text": ({"r": "8"}, "config.value_invalid"),
    "51-rank-true": ({"r": True}, "config.value_invalid"),
    "51-rank-huge": ({"r": 10**9}, "config.value_invalid"),
    "51-rank-pattern-huge": ({"rank_pattern": {"q_proj": 10**9}}, "config.value_invalid"),
    "52-alpha-huge": ({"lora_alpha": 1e30}, "config.value_invalid"),
    "53-layer-replication": ({"layer_replication": [[0, 10**9]]}, "config.value_invalid"),
    "54-targets-hang": ({"target_modules": _HANG}, "config.pattern_refused"),
    "54-excluded-hang": ({"exclude_modules": "(a|a)*b"}, "config.pattern_refused"),
    "54-saved-hang": ({"modules_to_save": [_HANG]}, "config.pattern_refused"),
    "54-saved-many": ({"modules_to_save": ["x"] * 30_000}, "config.value_invalid"),
    "54-rank-pattern-hang": ({"rank_pattern": {"(.*a){20}": 4}}, "config.pattern_refused"),
    "54-alpha-pattern-hang": ({"alpha_pattern": {"(x+x+)+y": 4}}, "config.pattern_refused"),
    "54-feedforward-hang": ({"peft_type": "IA3", "feedforward_modules": _HANG}, "config.pattern_refused"),
    "54-masks-hang": ({"peft_type": "ADALORA", "rank_pattern": {_HANG: [True]}}, "config.pattern_refused"),
    "54-masks-in-a-list": ({"peft_type": "ADALORA", "rank_pattern": [_HANG]}, "config.value_invalid"),
    "54-layers-pattern-hang": ({"layers_pattern": _HANG}, "config.pattern_refused"),
    "54-stars": ({"target_modules": ".*.*.*.*.*.*.*x"}, "config.pattern_refused"),
    "54-six-stars": ({"target_modules": ".*a.*b.*c.*d.*e.*f"}, "config.pattern_refused"),
    "54-stars-in-keys": ({"rank_pattern": {f".*a.*b.*c.*d{i}": 4 for i in range(20)}}, "config.pattern_refused"),
    "54-stars-in-both": (
        {"rank_pattern": {f".*a.*b{i}": 4 for i in range(70)}, "alpha_pattern": {f".*a.*b{i}": 4 for i in range(70)}},
        "config.pattern_refused"),
    "55-unknown-method": ({"peft_type": "SUPER_LORA_9000"}, "config.method_unknown"),
    "55-no-method": ({"peft_type": None}, "config.method_unknown"),
    "55-unknown-task": ({"task_type": "MIND_READING"}, "config.task_unknown"),
    "99-deep": (b'{"a":' + b"[" * 9000 + b"]" * 9000 + b"}", "config.too_deep"),
    "99-wrong-flag": ({"use_dora": "yes"}, "config.value_invalid"),
}  # fmt: skip

CONFIGS: dict[str, BadFile] = {
    name: (
        change if isinstance(change, bytes) else json.dumps({**_GOOD_CONFIG, **change}).encode(),
        LARGE if reason.endswith("too_large") else CONFIG,
        reason,
    )
    for name, (change, reason) in _CONFIGS.items()
}
