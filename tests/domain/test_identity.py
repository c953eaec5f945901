"""Which weights a base has, and the matches between two bases, from forged identities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import ValidationError

from registry.bases import BaseMatch, identity
from registry.bases.identity import Identity, Leaf, MatchThresholds, TensorMark, compare
from registry.digest import Digest
from tests import effort
from tests.identities import make_identity, nudged, values

ONE = values()
BASE = make_identity(ONE)


def leaves(count: int) -> list[Leaf]:
    return [Leaf(f"t{i}", "F32", (i, 2), Digest.of(b"%d" % i)) for i in range(count)]


def test_the_exact_fingerprint_does_not_depend_on_the_order_of_tensors() -> None:
    for count in (1, 2, 3, 7, 8):
        assert identity.root(leaves(count)) == identity.root(reversed(leaves(count)))


def test_the_exact_fingerprint_covers_name_dtype_shape_bytes_and_the_number_of_tensors() -> None:
    first, *rest = leaves(3)
    changes = [
        replace(first, name="other"), replace(first, dtype="BF16"), replace(first, shape=(2, 0)),
        replace(first, digest=Digest.of(b"x")),
    ]  # fmt: skip
    roots = {identity.root([changed, *rest]) for changed in [first, *changes]} | {identity.root(rest)}
    assert len(roots) == 6


@pytest.mark.parametrize(
    ("other", "match"),
    [
        (BASE, BaseMatch.EXACT),
        (make_identity(nudged(ONE, 0.001), dtype="BF16"), BaseMatch.OTHER_DTYPE),
        (make_identity(nudged(ONE, 0.08, only="_proj"), quantization="bitsandbytes", packed="_proj"),
         BaseMatch.QUANTIZED),
        (make_identity(nudged(ONE, 0.001), dtype="F32"), BaseMatch.DESCENDANT),
        (make_identity(nudged(ONE, 0.05, only="down_proj"), dtype="BF16"), BaseMatch.DESCENDANT),
        (make_identity(ONE, rows={"model.embed_tokens.weight": 9}), BaseMatch.DESCENDANT),
        (make_identity(nudged(ONE, 0.08), quantization="bitsandbytes", packed="_proj"), BaseMatch.DESCENDANT),
        (make_identity(values(1)), BaseMatch.UNRELATED),
        (make_identity(values(1), dtype="BF16"), BaseMatch.UNRELATED),
        (make_identity(values(1), quantization="bitsandbytes", packed="_proj"), BaseMatch.UNRELATED),
        (make_identity({f"other.{name}": v for name, v in ONE.items()}), BaseMatch.UNRELATED),
    ],
    ids=["same", "cast", "packed", "same dtype", "tuned and cast", "resized", "tuned and packed", "other weights",
         "other weights cast", "other weights packed", "another model"],
)  # fmt: skip
def test_two_bases_have_the_expected_match_in_either_order(other: Identity, match: BaseMatch) -> None:
    assert compare(BASE, other).match is match
    assert compare(other, BASE) == compare(BASE, other)


def test_a_similarity_says_which_modules_differ() -> None:
    similarity = compare(BASE, make_identity(nudged(ONE, 0.05, only="down_proj")))
    assert (similarity.changed, similarity.compared, similarity.equal) == (("down_proj",), 5, 3)
    assert "only down_proj differ" in similarity.message


def test_constant_tensors_are_not_compared() -> None:
    norm = TensorMark(dtype="F32", shape=(8,), digest=Digest.of(b"ones"), constant=True)
    base, other = (
        of.model_copy(update={"marks": {**of.marks, "norm": norm}}) for of in (BASE, make_identity(values(1)))
    )
    assert compare(base, other).compared == 5
    assert compare(base, other).equal == 0


def test_a_packing_that_cannot_be_read_is_unknown_when_nothing_plain_is_left() -> None:
    packed = make_identity(ONE, quantization="gptq", packed="weight")
    blind = {n: m.model_copy(update={"sketch": "", "shape": ()}) for n, m in packed.marks.items()}
    similarity = compare(BASE, packed.model_copy(update={"marks": blind}))
    assert (similarity.match, similarity.message) == (BaseMatch.UNKNOWN, "is packed in a way that cannot be compared")


def test_an_unreadable_packing_is_compared_by_the_plain_tensors() -> None:
    packed = make_identity(ONE, quantization="gptq", packed="_proj")
    blind = {n: m.model_copy(update={"sketch": ""}) if m.packed else m for n, m in packed.marks.items()}
    assert compare(BASE, packed.model_copy(update={"marks": blind})).match is BaseMatch.QUANTIZED


def test_thresholds_can_be_set() -> None:
    tuned = make_identity(nudged(ONE, 0.05))
    assert compare(BASE, tuned).match is BaseMatch.DESCENDANT
    assert compare(BASE, tuned, MatchThresholds(descendant_mean=0.9999)).match is BaseMatch.UNRELATED


def test_large_bases_keep_the_marks_of_the_same_tensors() -> None:
    names = [f"model.layers.{i}.weight" for i in range(10_000)]
    marked = identity.select_marked(names)
    assert len(marked) == identity.MARKS_LIMIT
    assert identity.select_marked([*names, "one.more"]) - {"one.more"} <= marked


def test_the_sketch_of_nothing_is_empty_and_the_length_does_not_count() -> None:
    assert identity.sketch([0.0] * 64) == identity.sketch([float("inf"), *[1.0] * 63]) == ""
    assert identity.sketch([1e-30] * 64) == identity.sketch([1e30] * 64)


@pytest.mark.parametrize("sketch", ["AAAA", "not base64!", "A" * 257])
def test_a_sketch_that_is_none_is_refused(sketch: str) -> None:
    with pytest.raises(ValidationError):
        TensorMark(dtype="F32", shape=(1,), digest=Digest.of(b""), sketch=sketch)


def test_comparing_identities_takes_time_linear_in_their_size() -> None:
    few, many = large_pair(250), large_pair(500)
    assert effort.lines(lambda: compare(*many)) < 2.2 * effort.lines(lambda: compare(*few))
    assert compare(*large_pair(identity.MARKS_LIMIT)).compared == identity.MARKS_LIMIT


def large_pair(size: int) -> tuple[Identity, Identity]:
    many = make_identity({f"model.layers.{i}.weight": ONE["model.embed_tokens.weight"] for i in range(size)})
    other = many.model_copy(update={
        "exact": Digest.of(b"other"),
        "marks": {n: m.model_copy(update={"digest": Digest.of(n.encode())}) for n, m in many.marks.items()},
    })  # fmt: skip
    return many, other
