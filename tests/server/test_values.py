"""The check `weights`: NaN, zeros and sizes, read once; what engines and gates make of it; large weights afterwards."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import delete, update
from sqlmodel import select

from registry.adapters import peft, safetensors
from registry.adapters.peft import config
from registry.adapters.read import Pair
from registry.api.catalog import BaseAdd
from registry.api.maintenance import GcRequest
from registry.bases.identity import Identity, TensorMark
from registry.client.local import base_folder
from registry.digest import Digest
from registry.server.database.models import VersionNormsRow, VersionRow
from registry.server.evaluation import weights as values
from registry.server.evaluation.weights import numbers
from registry.server.evaluation.weights.measure import Window
from registry.server.push import background
from tests import forge, forge_foreign
from tests.forge import CONFIG, WEIGHTS, Files
from tests.world import World

VLLM = "vllm==0.33.0"
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def world(database_url: str) -> Iterator[World]:
    with World(database_url, engines=VLLM) as made:
        made.add_base()
        yield made


def filled(**values: float) -> Files:
    """An adapter whose tensors hold one number each: `a` and `b`; `odd` is the last element of one of them."""

    def change(given: dict[str, Any]) -> dict[str, Any]:
        made = {}
        for name, (_, shape, _) in given.items():
            count = math.prod(shape)
            data = np.full(count, values["a" if "lora_A" in name else "b"], "<f4")
            if name == f"{Q}.lora_A.weight" and "odd" in values:
                data[-1] = values["odd"]
            made[name] = ("F32", shape, data.tobytes())
        return made

    return forge.lora(forge.llama(), change=change)


def outcome(world: World, ref: str) -> tuple[str, list[str]]:
    found = next(v for v in world.admin.version(ref).verdicts if v.check == "weights")
    return str(found.outcome), [f.code for f in found.findings]


# ------------------------------------------------------------------ at the commit
def test_a_healthy_adapter_passes_and_its_norms_are_known_without_a_worker(world: World) -> None:
    files = filled(a=0.02, b=0.01)
    world.push("acme/support", files)
    assert outcome(world, "acme/support") == ("pass", [])
    spec = peft.describe(config.read_config(files[CONFIG]), safetensors.read_bytes(files[WEIGHTS], file=WEIGHTS))
    known = world.admin.norms("acme/support")
    assert set(known.modules) == {module.path for module in spec.modules}
    assert known.measured_at is not None
    for module in spec.modules:
        rank, width, height = module.rank, module.in_features, module.out_features
        element = module.scale * rank * 0.02 * 0.01  # every element of scale * B @ A
        size = known.modules[module.path]
        assert size.a == pytest.approx(0.02 * math.sqrt(rank * width), rel=1e-3)
        assert size.b == pytest.approx(0.01 * math.sqrt(rank * height), rel=1e-3)
        assert size.rms == pytest.approx(element, rel=1e-3)
        assert size.update == pytest.approx(element * math.sqrt(width * height), rel=1e-3)


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_fails_shuts_every_engine_and_asks_no_worker(world: World, odd: float) -> None:
    pushed = world.push("acme/support", filled(a=0.02, b=0.01, odd=odd))
    assert outcome(world, "acme/support") == ("fail", ["weights.not_finite"])
    judged = {str(v.check): v for v in pushed.version.verdicts}
    assert judged["compat"].outcome == "pass"
    assert judged["weights"].findings[0].location == f"{Q}.lora_A.weight"
    assert judged["engine"].outcome == "fail"
    assert pushed.job_id == ""
    assert world.admin.norms("acme/support").modules == {}
    assert world.admin.verdicts("acme/support", ["vllm==0.31.0"]).items[0].outcome == "fail"


def test_zeros_and_huge_updates_are_warnings(world: World) -> None:
    world.push("acme/untrained", filled(a=0.02, b=0.0))
    world.push("acme/diverged", filled(a=10.0, b=10.0))
    world.push("acme/beyond", filled(a=1e30, b=1e30))
    assert outcome(world, "acme/untrained") == ("warn", ["weights.zero_b"])
    assert outcome(world, "acme/diverged") == ("warn", ["weights.huge"])
    assert outcome(world, "acme/beyond") == ("warn", ["weights.huge"])
    assert {size.update for size in world.admin.norms("acme/beyond").modules.values()} == {None}


# ------------------------------------------------------------------ against the base
def identity_of(world: World, size: float | None, base: str = "tiny-llama") -> Identity:
    """An identity of the base whose weights all have this norm."""
    names = [f"{path}.weight" for path in world.bases[base].modules]
    marks = {name: TensorMark(dtype="F32", shape=(1,), digest=Digest.of(name.encode()), norm=size) for name in names}
    return Identity(exact=Digest.of(b"weights"), tensors=len(marks), marks=marks)


def test_updates_are_compared_with_the_base_once_its_weights_are_known(world: World) -> None:
    files = filled(a=0.02, b=0.01)
    world.push("acme/support", files)
    before = world.admin.norms("acme/support")
    assert (before.base, before.base_measured) == ("tiny-llama", False)
    assert {(one.weight, one.share) for one in before.modules.values()} == {(None, None)}
    world.admin.identify_base("tiny-llama", identity_of(world, 8.0))
    after = world.admin.norms("acme/support")
    assert after.base_measured
    for path, one in after.modules.items():
        update = before.modules[path].update
        assert update is not None
        assert one.weight == 8.0
        assert one.share == pytest.approx(update / 8.0, rel=1e-2)


def test_an_update_larger_than_the_weight_that_it_changes_is_warned_of_at_the_push(world: World) -> None:
    world.push("acme/before", filled(a=0.05, b=0.05))
    assert outcome(world, "acme/before") == ("pass", [])
    world.admin.identify_base("tiny-llama", identity_of(world, 0.5))
    world.push("acme/support", filled(a=0.05, b=0.051))
    found = next(v for v in world.admin.version("acme/support").verdicts if v.check == "weights")
    assert (found.outcome, [f.code for f in found.findings]) == ("warn", ["weights.beyond_base"])
    assert "times as large as the weight of tiny-llama" in found.findings[0].message
    world.admin.set_thresholds("tiny-llama", {"update_share_warn": 1000.0})
    world.push("acme/allowed", filled(a=0.05, b=0.052))
    assert outcome(world, "acme/allowed") == ("pass", [])


def test_an_identity_without_norms_gets_them_when_the_same_weights_are_read_again(world: World) -> None:
    world.push("acme/support", filled(a=0.02, b=0.01))
    world.admin.identify_base("tiny-llama", identity_of(world, None))
    assert not world.admin.norms("acme/support").base_measured
    world.admin.identify_base("tiny-llama", identity_of(world, 8.0))
    assert {one.weight for one in world.admin.norms("acme/support").modules.values()} == {8.0}


def test_another_tools_names_are_compared_with_the_modules_that_they_mean(world: World, tmp_path: Path) -> None:
    spec, _ = base_folder.base_spec_from(forge_foreign.pipeline(tmp_path / "sd"), "sd-tiny")
    world.bases["sd-tiny"] = spec
    world.admin.add_base(BaseAdd(spec=spec, identity=identity_of(world, 3.0, "sd-tiny")))
    world.push("art/style", {"style.safetensors": forge_foreign.kohya()}, base="sd-tiny")
    found = world.admin.norms("art/style").modules
    assert {path.rpartition("_to_")[2] for path in found} == {"q", "k"}
    for one in found.values():
        assert one.weight == 3.0
        assert one.share == pytest.approx((one.update or 0) / 3.0, rel=1e-2)


@pytest.mark.parametrize("turned", [False, True])
def test_other_tools_pairs_have_norms_too(turned: bool) -> None:
    """kohya's and torchtune's halves as PEFT's; mlx stores both the other way round."""
    a: Any = np.random.default_rng(1).normal(size=(2, 3)).astype("<f4")
    b: Any = np.full((5, 2), 0.5, "<f4")
    stored = {"x.a": a.T if turned else a, "x.b": b.T if turned else b, "y.a": a, "y.b": b}
    kinds = dict.fromkeys(stored, "F32") | {"y.b": "I32"}
    body = forge.safetensors({n: (kinds[n], t.shape, np.ascontiguousarray(t).tobytes()) for n, t in stored.items()})
    header = safetensors.read_bytes(body, file=WEIGHTS)
    pairs = [Pair("x", 2, 0.5, "x.a", "x.b", turned), Pair("y", 2, 1.0, "y.a", "y.b"), Pair("z", 2, 1.0, "z.a", "z.b")]
    found = numbers.compute_norms(lambda start, n: body[start : start + n], header, pairs)
    assert list(found) == ["x"]
    assert found["x"].update == pytest.approx(0.5 * float(np.linalg.norm(b @ a)), rel=1e-3)
    assert found["x"].a == pytest.approx(float(np.linalg.norm(a)), rel=1e-3)


# ------------------------------------------------------------------ afterwards
def test_large_weights_are_measured_once_when_the_push_has_been_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("registry.server.push.inspect.INLINE_BYTES", 0)
    pushed = world.push("acme/support", filled(a=0.02, b=0.01, odd=math.nan))
    assert [str(v.check) for v in pushed.version.verdicts] == ["compat", "engine"]
    assert pushed.version.verdicts[1].outcome == "pass"  # nobody knew yet
    while values.measure_missing(world.engine, world.blobs, limit=1):  # as after every push; here it is waited for
        pass
    assert outcome(world, "acme/support") == ("fail", ["weights.not_finite"])
    newest = {str(v.check): v.outcome for v in world.admin.version("acme/support").verdicts}
    assert newest == {"compat": "pass", "weights": "fail", "engine": "fail"}
    assert world.admin.collect(GcRequest()).versions_measured == 0


def test_measuring_waits_until_nobody_pushes(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "QUIET_SECONDS", 0.05)
    world.push("acme/support")
    world.transport.settle()  # what it measures itself, after its answer
    with world.session(write=True) as session:
        session.connection().execute(update(VersionRow).values(measured_at=None))
        session.connection().execute(delete(VersionNormsRow))
    with ThreadPoolExecutor(1) as pool:
        with background.push_in_progress(world.engine):
            measuring = pool.submit(background.run_pending, world.engine, world.blobs)
            with pytest.raises(TimeoutError):
                measuring.result(3 * background.QUIET_SECONDS)
            assert world.admin.norms("acme/support").measured_at is None
        measuring.result(60)
    assert world.admin.norms("acme/support").measured_at is not None


def test_a_push_that_never_ends_does_not_stop_measuring(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "MEASURE_DELAY_SECONDS", 0.01)
    world.push("acme/support")
    world.transport.settle()  # what it measures itself, after its answer
    with world.session(write=True) as session:
        session.connection().execute(update(VersionRow).values(measured_at=None))
        session.connection().execute(delete(VersionNormsRow))
    with background.push_in_progress(world.engine):
        background.run_pending(world.engine, world.blobs)
        assert world.admin.norms("acme/support").measured_at is not None


def test_what_was_never_measured_is_measured_by_gc(world: World) -> None:
    world.push("acme/support")
    world.transport.settle()  # what it measures itself, after its answer
    with world.session(write=True) as session:
        row = session.exec(select(VersionRow)).one()
        row.measured_at = None
        session.connection().execute(delete(VersionNormsRow))
        session.add(row)
    world.admin.collect(GcRequest())  # or the background of the push, if that is slow
    assert world.admin.norms("acme/support").modules
    assert outcome(world, "acme/support") == ("pass", [])
    assert world.admin.collect(GcRequest()).versions_measured == 0


# ------------------------------------------------------------------ numbers
def weights(dtype: str, data: bytes, count: int) -> tuple[Any, safetensors.Header]:
    body = forge.safetensors({"x": (dtype, (count,), data)})
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
def test_every_type_knows_its_largest_number_from_nan_and_infinity(dtype: str, good: bytes, bad: list[bytes]) -> None:
    assert numbers.find_not_finite(*weights(dtype, good * 3, 3)) == []
    for element in bad:
        assert numbers.find_not_finite(*weights(dtype, good * 2 + element, 3)) == ["x"]


def test_eight_bit_floats_have_the_values_that_torch_gives_them() -> None:
    torch = pytest.importorskip("torch")
    for dtype, theirs in (("F8_E4M3", torch.float8_e4m3fn), ("F8_E5M2", torch.float8_e5m2)):
        codes = torch.arange(256, dtype=torch.uint8).view(theirs).float().numpy()
        ours = numbers._eight_bits(dtype)
        finite = np.isfinite(codes)
        assert (ours[finite] == codes[finite]).all()


def test_a_file_is_fetched_in_large_pieces_and_never_beyond_its_end() -> None:
    data = bytes(range(256)) * 4096
    asked: list[tuple[int, int]] = []

    def fetch(start: int, length: int) -> bytes:
        asked.append((start, length))
        return data[start : start + length]

    window = Window(fetch, len(data))
    assert bytes(window.read(10, 5)) == data[10:15]
    assert bytes(window.read(1000, 100)) == data[1000:1100]
    assert bytes(window.read(0, 4)) == data[:4]
    assert asked == [(10, len(data) - 10), (0, len(data))]
