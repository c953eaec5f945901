"""Mutated files against every parser of untrusted bytes, and mutated proofs of the log (`make fuzz` runs many more).

An input that makes a parser fail is kept in the corpus, and is tried first from then on.
"""

from __future__ import annotations

import os
import random
import sys

import pytest

from registry import tlog
from registry.digest import Digest
from tests.audit import trees
from tests.fuzz.parsers import CORPUS, PARSERS, corpus, parse

pytestmark = [pytest.mark.security, pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")]

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "500"))
SEED = os.environ.get("FUZZ_SEED", "20261127")
PROOFS = int(os.environ.get("FUZZ_PROOFS", "20000"))
TOKENS = [
    b"null", b"NaN", b"-0", b"1e999", b"9" * 50, b'"', b'\\ud800"', b"{", b"[" * 40, b"}", b",", b":", b"\0", b"\xff",
    b"\n", b"\n\n", b"---\n", b"{{", b"%}", b"__class__", b"../", b"lora_A", b"F32", b"sha256:", b"\xe2\x80\xae",
    (2**64 - 1).to_bytes(8, "little"), (2**63).to_bytes(8, "little"), (2**32).to_bytes(8, "little"), bytes(8),
]  # fmt: skip


def mutated(draw: random.Random, seeds: list[bytes]) -> bytes:
    """A seed with one to six edits: bytes removed, replaced, inserted, or taken from another seed."""
    data = draw.choice(seeds)
    for _ in range(draw.randint(1, 6)):
        at, end = draw.randint(0, len(data)), draw.randint(0, 32)
        other = draw.choice(seeds)
        start = draw.randint(0, len(other))
        inserted = draw.choice(
            (b"", draw.choice(TOKENS), draw.randbytes(draw.randint(1, 8)), other[start : start + end])
        )
        data = data[:at] + inserted + data[at + draw.choice((0, 1, end)) :]
    return data


@pytest.mark.parametrize("name", PARSERS)
def test_everything_in_the_corpus_is_parsed_or_refused(name: str) -> None:
    inputs = list(corpus(name))
    assert [
        path.name for path in inputs if not path.name.startswith("kept-") and not parse(name, path.read_bytes())
    ] == []
    for path in inputs:
        parse(name, path.read_bytes())


@pytest.mark.parametrize("name", PARSERS)
def test_a_mutated_input_is_parsed_or_refused(name: str) -> None:
    seeds = [path.read_bytes() for path in corpus(name)]
    draw = random.Random(f"{SEED} {name}")
    accepted = 0
    for _ in range(EXAMPLES):
        data = mutated(draw, seeds)
        try:
            accepted += parse(name, data)
        except Exception:
            if "FUZZ_EXAMPLES" in os.environ:
                (CORPUS / name / f"kept-{Digest.of(data).short}").write_bytes(data)
            raise
    print(f"{name}: {EXAMPLES} mutated inputs, {accepted} accepted", file=sys.stderr)


def test_no_mutated_proof_is_accepted() -> None:
    draw = random.Random(20261127)
    leaves = [tlog.leaf_hash(str(number).encode()) for number in range(128)]
    roots = [trees.naive_root(leaves[:size]) for size in range(129)]
    nodes = [trees.Nodes(leaves[:size]) for size in range(129)]
    tried = accepted = 0
    while tried < PROOFS:
        size = draw.randint(2, 128)
        index, old = draw.randrange(size), draw.randint(1, size - 1)
        inclusion, consistency = tlog.inclusion(index, size, nodes[size]), tlog.consistency(old, size, nodes[size])
        for _ in range(8):
            tried += 2
            proof = trees.mutated(draw, inclusion)
            accepted += tlog.verify_inclusion(leaves[index], index, size, proof, roots[size])
            proof = trees.mutated(draw, consistency)
            accepted += tlog.verify_consistency(old, roots[old], size, roots[size], proof)
    print(f"{tried} mutated proofs, {accepted} accepted", file=sys.stderr)
    assert accepted == 0
