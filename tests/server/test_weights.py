"""The check `weights`: NaN, zeros, norms and their share of the base's weights; large weights after the push."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete
from sqlmodel import select

from registry.adapters import formats, peft, safetensors
from registry.adapters.peft import config
from registry.adapters.read import Pair
from registry.api.bases import BaseAdd
from registry.api.maintenance import GcRequest
from registry.bases.identity import Identity, TensorMark
from registry.client.local import base_folder
from registry.compat.paths import Paths
from registry.digest import Digest
from registry.server.database.models import VersionRow
from registry.server.database.models.pushes import VersionNormsRow
from registry.server.evaluation import norms, weights
from registry.server.evaluation.norms import MeasuringPlan, Window
from registry.server.evaluation.weights import BaseNorms
from tests import non_peft_files, samples
from tests.harness import Harness
from tests.samples import CONFIG, WEIGHTS, Files

VLLM = "vllm==0.33.0"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def harness(database_url: str) -> Iterator[Harness]:
    with Harness(database_url, engines=VLLM) as harness:
        harness.add_base()
        yield harness


def filled(**values: float) -> Files:
    """An adapter whose tensors hold one number each: `a` and `b`; `odd` is the last element of one of them."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        changed = {}
        for name, (_, shape, _) in tensors.items():
            count = math.prod(shape)
            data = np.full(count, values["a" if "lora_A" in name else "b"], "<f4")
            if name == f"{Q}.lora_A.weight" and "odd" in values:
                data[-1] = values["odd"]
            changed[name] = ("F32", shape, data.tobytes())
        return changed

    return samples.lora(samples.llama(), change=change)


def outcome(harness: Harness, ref: str) -> tuple[str, list[str]]:
    verdict = next(v for v in harness.admin.version(ref).verdicts if v.check == "weights")
    return str(verdict.outcome), [f.code for f in verdict.findings]


# ------------------------------------------------------------------ at the commit
def test_a_healthy_adapter_passes_and_its_norms_are_known_without_a_worker(harness: Harness) -> None:
    files = filled(a=0.02, b=0.01)
    harness.push("acme/support", files)
    assert outcome(harness, "acme/support") == ("pass", [])
    spec = peft.describe(config.read_config(files[CONFIG]), safetensors.read_bytes(files[WEIGHTS], file=WEIGHTS))
    measured = harness.admin.norms("acme/support")
    assert set(measured.modules) == {module.path for module in spec.modules}
    assert measured.measured_at is not None
    for module in spec.modules:
        rank, width, height = module.rank, module.in_features, module.out_features
        element = module.scale * rank * 0.02 * 0.01  # every element of scale * B @ A
        size = measured.modules[module.path]
        assert size.a == pytest.approx(0.02 * math.sqrt(rank * width), rel=1e-3)
        assert size.b == pytest.approx(0.01 * math.sqrt(rank * height), rel=1e-3)
        assert size.rms == pytest.approx(element, rel=1e-3)
        assert size.update == pytest.approx(element * math.sqrt(width * height), rel=1e-3)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_nan_or_infinity_fails_weights_and_every_engine_and_queues_no_smoke_test(
    harness: Harness, odd: float
) -> None:
    pushed = harness.push("acme/support", filled(a=0.02, b=0.01, odd=odd))
    assert outcome(harness, "acme/support") == ("fail", ["weights.not_finite"])
    verdicts = {str(v.check): v for v in pushed.version.verdicts}
    assert verdicts["compat"].outcome == "pass"
    assert verdicts["weights"].findings[0].location == f"{Q}.lora_A.weight"
    assert verdicts["engine"].outcome == "fail"
    assert pushed.job_id == ""
    assert harness.admin.norms("acme/support").modules == {}
    assert harness.admin.verdicts("acme/support", ["vllm==0.31.0"]).items[0].outcome == "fail"


def test_zeros_and_huge_updates_are_warnings(harness: Harness) -> None:
    harness.push("acme/untrained", filled(a=0.02, b=0.0))
    harness.push("acme/diverged", filled(a=10.0, b=10.0))
    harness.push("acme/beyond", filled(a=1e30, b=1e30))
    assert outcome(harness, "acme/untrained") == ("warn", ["weights.zero_b"])
    assert outcome(harness, "acme/diverged") == ("warn", ["weights.huge"])
    assert outcome(harness, "acme/beyond") == ("warn", ["weights.huge"])
    assert {size.update for size in harness.admin.norms("acme/beyond").modules.values()} == {None}


# ------------------------------------------------------------------ the base's weights
def identity_of(harness: Harness, size: float | None, base: str = "tiny-llama") -> Identity:
    """An identity of the base whose weights all have this norm."""
    names = [f"{path}.weight" for path in harness.bases[base].modules]
    marks = {name: TensorMark(dtype="F32", shape=(1,), digest=Digest.of(name.encode()), norm=size) for name in names}
    return Identity(exact=Digest.of(b"weights"), tensors=len(marks), marks=marks)


def test_updates_are_compared_with_the_base_once_its_weights_are_known(harness: Harness) -> None:
    files = filled(a=0.02, b=0.01)
    harness.push("acme/support", files)
    before = harness.admin.norms("acme/support")
    assert (before.base, before.base_measured) == ("tiny-llama", False)
    assert {(module.weight, module.share) for module in before.modules.values()} == {(None, None)}
    harness.admin.identify_base("tiny-llama", identity_of(harness, 8.0))
    after = harness.admin.norms("acme/support")
    assert after.base_measured
    for path, module in after.modules.items():
        update = before.modules[path].update
        assert update is not None
        assert module.weight == 8.0
        assert module.share == pytest.approx(update / 8.0, rel=1e-2)


def test_a_push_warns_of_an_update_larger_than_the_weight_that_it_changes(harness: Harness) -> None:
    harness.push("acme/before", filled(a=0.05, b=0.05))
    assert outcome(harness, "acme/before") == ("pass", [])
    harness.admin.identify_base("tiny-llama", identity_of(harness, 0.5))
    harness.push("acme/support", filled(a=0.05, b=0.051))
    verdict = next(v for v in harness.admin.version("acme/support").verdicts if v.check == "weights")
    assert (verdict.outcome, [f.code for f in verdict.findings]) == ("warn", ["weights.beyond_base"])
    assert "times as large as the weight of tiny-llama" in verdict.findings[0].message
    harness.admin.set_thresholds("tiny-llama", {"update_share_warn": 1000.0})
    harness.push("acme/allowed", filled(a=0.05, b=0.052))
    assert outcome(harness, "acme/allowed") == ("pass", [])


def test_names_of_other_tools_are_compared_with_the_modules_that_they_mean(harness: Harness, tmp_path: Path) -> None:
    spec, _ = base_folder.base_spec_from(non_peft_files.pipeline(tmp_path / "sd"), "sd-tiny")
    harness.bases["sd-tiny"] = spec
    harness.admin.add_base(BaseAdd(spec=spec, identity=identity_of(harness, 3.0, "sd-tiny")))
    harness.push("art/style", {"style.safetensors": non_peft_files.kohya()}, base="sd-tiny")
    modules = harness.admin.norms("art/style").modules
    assert {path.rpartition("_to_")[2] for path in modules} == {"q", "k"}
    for module in modules.values():
        assert module.weight == 3.0
        assert module.share == pytest.approx((module.update or 0) / 3.0, rel=1e-2)


@pytest.mark.parametrize("turned", [False, True])
def test_norms_of_transposed_factors(turned: bool) -> None:
    """kohya and torchtune store factors as PEFT does; mlx stores both transposed."""
    a: Any = np.random.default_rng(1).normal(size=(2, 3)).astype("<f4")
    b: Any = np.full((5, 2), 0.5, "<f4")
    stored = {"x.a": a.T if turned else a, "x.b": b.T if turned else b, "y.a": a, "y.b": b}
    kinds = dict.fromkeys(stored, "F32") | {"y.b": "I32"}
    body = samples.safetensors({n: (kinds[n], t.shape, np.ascontiguousarray(t).tobytes()) for n, t in stored.items()})
    header = safetensors.read_bytes(body, file=WEIGHTS)
    pairs = [Pair("x", 2, 0.5, "x.a", "x.b", turned), Pair("y", 2, 1.0, "y.a", "y.b"), Pair("z", 2, 1.0, "z.a", "z.b")]
    measured = MeasuringPlan.of(header, pairs).compute_norms(lambda start, n: body[start : start + n])
    assert list(measured) == ["x"]
    assert measured["x"].update == pytest.approx(0.5 * float(np.linalg.norm(b @ a)), rel=1e-3)
    assert measured["x"].a == pytest.approx(float(np.linalg.norm(a)), rel=1e-3)


def test_norm_of_a_fused_matrix_is_that_of_its_parts_together() -> None:
    parts = {f"transformer.transformer_blocks.0.attn.to_{leaf}": 2.0 for leaf in "qkv"}
    norms = {f"{path}.weight": size for path, size in parts.items()}
    fused = "lora_unet_double_blocks_0_img_attn_qkv"
    assert BaseNorms("flux", norms, paths=Paths(formats.KOHYA, parts)).norm(fused) == pytest.approx(12**0.5, rel=1e-4)
    missing = BaseNorms("flux", dict(list(norms.items())[:2]), paths=Paths(formats.KOHYA, parts))
    assert missing.norm(fused) is None


def test_norm_of_a_block_of_experts_is_that_of_its_experts_together() -> None:
    at = "model.layers.0.block_sparse_moe"
    apart = {f"{at}.experts.{n}.{leaf}.weight": 2.0 for n in range(3) for leaf in ("w1", "w2", "w3")}
    base = BaseNorms("moe", {**apart, f"{at}.gate.weight": 5.0})
    sizes = [base.norm(f"model.layers.0.mlp.{name}") for name in ("experts.gate_up_proj", "experts.down_proj", "gate")]
    assert sizes == [pytest.approx(24**0.5, rel=1e-4), pytest.approx(12**0.5, rel=1e-4), 5.0]
    assert BaseNorms("fused", {"x.experts.down_proj": 3.0}).norm("x.experts.down_proj") == 3.0


def test_a_tied_head_is_compared_with_the_embedding() -> None:
    base = BaseNorms("tied", {"model.embed_tokens.weight": 4.0})
    assert (base.norm("lm_head"), base.share("lm_head", 1.0)) == (4.0, 0.25)
    assert base.share("model.layers.0.self_attn.q_proj", 1.0) is None


# ------------------------------------------------------------------ after the push
def test_large_weights_are_measured_once_after_the_push(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("registry.server.push.inspect.INLINE_BYTES", 0)
    pushed = harness.push("acme/support", filled(a=0.02, b=0.01, odd=math.nan))
    assert [str(v.check) for v in pushed.version.verdicts] == ["compat", "engine"]
    assert pushed.version.verdicts[1].outcome == "pass"  # the NaN is not known yet
    while weights.measure_newest(harness.engine, harness.blobs):  # as after every push
        pass
    assert outcome(harness, "acme/support") == ("fail", ["weights.not_finite"])
    newest = {str(v.check): v.outcome for v in harness.admin.version("acme/support").verdicts}
    assert newest == {"compat": "pass", "weights": "fail", "engine": "fail"}
    assert harness.admin.collect(GcRequest()).versions_measured == 0


def test_gc_measures_versions_that_were_never_measured(harness: Harness) -> None:
    harness.push("acme/support")
    harness.transport.settle()  # the background work of the push
    with harness.session(write=True) as session:
        row = session.exec(select(VersionRow)).one()
        row.measured_at = None
        session.connection().execute(delete(VersionNormsRow))
        session.add(row)
    harness.admin.collect(GcRequest())  # unless the background work of the push was faster
    assert harness.admin.norms("acme/support").modules
    assert outcome(harness, "acme/support") == ("pass", [])
    assert harness.admin.collect(GcRequest()).versions_measured == 0


# ------------------------------------------------------------------ numbers
def tensor_of(dtype: str, data: bytes, count: int) -> tuple[Any, safetensors.Header]:
    body = samples.safetensors({"x": (dtype, (count,), data)})
    return (lambda start, n: body[start : start + n]), safetensors.read_bytes(body, file=WEIGHTS)


@pytest.mark.parametrize(
    ("dtype", "good", "bad"),
    [
        ("F32", struct.pack("<f", 3.4e38), [b"\x00\x00\x80\x7f", b"\x01\x00\x80\xff", b"\x00\x00\xc0\x7f"]),
        ("BF16", b"\x7f\x7f", [b"\x80\x7f", b"\x80\xff", b"\xc0\x7f"]),
        ("F16", struct.pack("<e", 65504.0), [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"]),
        ("F64", struct.pack("<d", 1e308), [struct.pack("<d", math.inf), struct.pack("<d", math.nan)]),
        ("F8_E4M3", b"\x7e", [b"\x7f", b"\xff"]),
        ("F8_E5M2", b"\x7b", [b"\x7c", b"\xfd"]),
        ("I32", b"\xff\xff\xff\x7f", []),
    ],
)
def test_every_type_tells_its_largest_number_from_nan_and_infinity(dtype: str, good: bytes, bad: list[bytes]) -> None:
    assert norms.find_not_finite(*tensor_of(dtype, good * 3, 3)) == []
    for element in bad:
        assert norms.find_not_finite(*tensor_of(dtype, good * 2 + element, 3)) == ["x"]


def test_eight_bit_floats_have_the_values_that_torch_gives_them() -> None:
    torch = pytest.importorskip("torch")
    for dtype, theirs in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8).view(theirs).float().numpy()
        ours = norms._eight_bits(dtype)
        finite = np.isfinite(codes)
        assert (ours[finite] == codes[finite]).all()


def test_sixteen_bit_floats_have_the_values_that_numpy_gives_them() -> None:
    codes: Any = np.arange(2**16, dtype="<u2")
    finite = codes[codes & 0x7C00 != 0x7C00]
    ours, theirs = norms._from_half(finite.view("<i2")), finite.view("<f2").astype("<f4")
    assert (ours.view("<u4") == theirs.view("<u4")).all()  # -0.0 and subnormal numbers included


def test_cosines_of_a_rank_above_the_width_are_those_of_the_products() -> None:
    source = np.random.default_rng(4)
    first, second = ({"x": tuple(source.normal(size=s).astype("f4") for s in ((1, r, 3), (1, 4, r)))} for r in (9, 7))
    products = [(f["x"][1] @ f["x"][0]).ravel() for f in (first, second)]
    cosine = products[0] @ products[1] / np.linalg.norm(products[0]) / np.linalg.norm(products[1])
    factors = [{"x": (*f["x"], 1.0)} for f in (first, second)]
    assert norms.compute_cosines(*factors)["x"] == pytest.approx(float(cosine), abs=1e-3)


def test_a_file_is_fetched_in_large_pieces_and_never_beyond_its_end() -> None:
    data = bytes(range(256)) * 4096
    requests: list[tuple[int, int]] = []

    def fetch(start: int, length: int) -> bytes:
        requests.append((start, length))
        return data[start : start + length]

    window = Window(fetch, len(data))
    assert bytes(window.read(10, 5)) == data[10:15]
    assert bytes(window.read(1000, 100)) == data[1000:1100]
    assert bytes(window.read(0, 4)) == data[:4]
    assert requests == [(10, len(data) - 10), (0, len(data))]
