"""The Merkle tree against published vectors and a naive tree; a changed proof is never accepted."""

from __future__ import annotations

import random

import pytest

from registry import tlog
from registry.errors import Invalid
from registry.tlog import notes, tiles
from registry.tlog.notes import Checkpoint, Signer, Verifier
from tests.audit import trees

pytestmark = pytest.mark.security

ENTRIES = [bytes.fromhex(text) for text in ("", "00", "10", "2021", "3031", "40414243", "5051525354555657",
                                            "606162636465666768696a6b6c6d6e6f")]  # fmt: skip
"""The leaves of the vectors that Certificate Transparency's implementations of RFC 6962 share."""
ROOTS = [
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]

NOTE = """If you think cryptography is the answer to your problem,
then you don't know what your problem is.

— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=
"""
"""The example of Go's package golang.org/x/mod/sumdb/note, whose format C2SP's signed-note is."""
NOTE_VERIFIER = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
NOTE_SIGNER = "PRIVATE+KEY+PeterNeumann+c74f20a3+AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz"


@pytest.fixture(scope="module")
def leaves() -> list[bytes]:
    return [tlog.leaf_hash(b"entry %d" % i) for i in range(300)]


def test_roots_are_those_of_the_vectors_of_rfc_6962() -> None:
    hashes = [tlog.leaf_hash(entry) for entry in ENTRIES]
    assert [tlog.root_of(hashes[:size]).hex() for size in range(1, 9)] == ROOTS
    assert tlog.root_of([]).hex() == "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"


def test_proofs_are_those_of_a_naive_tree_and_verify(leaves: list[bytes]) -> None:
    for size in [*range(1, 34), 63, 64, 65, 127, 128, 129, 200]:
        tree, root = trees.Nodes(leaves[:size]), trees.naive_root(leaves[:size])
        assert tlog.root(size, tree) == root
        for index in {0, 1, size // 2, size - 2, size - 1} & set(range(size)):
            proof = tlog.inclusion(index, size, tree)
            assert proof == trees.naive_path(index, leaves[:size])
            assert tlog.verify_inclusion(leaves[index], index, size, proof, root)
        for old in {1, 2, 3, size // 3, size // 2, size - 1, size} & set(range(1, size + 1)):
            shown = tlog.consistency(old, size, tree)
            assert shown == trees.naive_consistency(old, leaves[:size])
            assert tlog.verify_consistency(old, trees.naive_root(leaves[:old]), size, root, shown)


def test_no_changed_proof_is_accepted(leaves: list[bytes]) -> None:
    """10^5 changed proofs."""
    draw = random.Random(20260503)
    roots = [trees.naive_root(leaves[:size]) for size in range(129)]
    nodes = [trees.Nodes(leaves[:size]) for size in range(129)]
    accepted = 0
    for _ in range(50_000):
        size = draw.randint(2, 128)
        index, old = draw.randrange(size), draw.randint(1, size - 1)
        tree = nodes[size]
        proof, shown = tlog.inclusion(index, size, tree), tlog.consistency(old, size, tree)
        accepted += tlog.verify_inclusion(leaves[index], index, size, trees.mutated(draw, proof), roots[size])
        changed = trees.mutated(draw, shown)
        accepted += tlog.verify_consistency(old, roots[old], size, roots[size], changed)
    assert accepted == 0


def test_a_proof_is_valid_only_for_its_leaf_index_size_and_root(leaves: list[bytes]) -> None:
    tree, root = trees.Nodes(leaves[:100]), trees.naive_root(leaves[:100])
    proof = tlog.inclusion(41, 100, tree)
    assert not tlog.verify_inclusion(leaves[40], 41, 100, proof, root)
    assert not tlog.verify_inclusion(leaves[41], 41, 100, proof, trees.naive_root(leaves[:99]))
    for index, size in [(40, 100), (42, 100), (-1, 100), (100, 100), (41, 41)]:
        assert not tlog.verify_inclusion(leaves[41], index, size, proof, root)
    shown = tlog.consistency(41, 100, tree)
    for old, new in [(42, 100), (101, 100), (-1, 100), (0, 100), (100, 100)]:
        assert not tlog.verify_consistency(old, trees.naive_root(leaves[:41]), new, root, shown)


def test_the_published_note_opens_and_is_signed_again_to_the_same_bytes() -> None:
    text = notes.open_note(NOTE, Verifier.parse(NOTE_VERIFIER))
    assert text == NOTE.partition("\n\n")[0] + "\n"
    signer = Signer.parse(NOTE_SIGNER)
    assert signer.verifier.text == NOTE_VERIFIER
    assert signer.text == NOTE_SIGNER
    assert notes.sign_note(text, signer) == NOTE
    assert "AYEK" not in repr(signer)


@pytest.mark.parametrize(
    "wrong",
    [
        NOTE.replace("answer", "answeR"),
        NOTE.replace("x08go", "x08gp"),
        NOTE.replace("/SffcvI", "/SffcvJ"),
        NOTE.rstrip("\n"),
        NOTE.replace("\n\n", "\n"),
        NOTE.replace("— ", "- "),
        NOTE.replace("JnAM=", "JnAN="),
        "",
    ],
)
def test_a_note_that_was_changed_does_not_open(wrong: str) -> None:
    assert notes.open_note(wrong, Verifier.parse(NOTE_VERIFIER)) is None


def test_a_note_needs_a_signature_of_a_known_key_and_may_have_others() -> None:
    first, two = Signer.make("log.example/a"), Signer.make("log.example/b")
    note = notes.sign_note(Checkpoint("log.example/a", 7, b"\1" * 32).text, first, two)
    assert Checkpoint.of_note(note, first.verifier) == Checkpoint("log.example/a", 7, b"\1" * 32)
    assert Checkpoint.of_note(note, two.verifier) is None, "it is not the checkpoint of that key's log"
    assert notes.open_note(note, Signer.make("log.example/a").verifier) is None


@pytest.mark.parametrize("text", ["", "x", "name+00000000+AQ==", NOTE_VERIFIER[:-1], NOTE_VERIFIER.replace("c7", "c8")])
def test_a_malformed_key_is_refused_with_the_broken_rule(text: str) -> None:
    with pytest.raises(Invalid):
        Verifier.parse(text)
    with pytest.raises(Invalid) as caught:
        Signer.parse("PRIVATE+KEY+" + text)
    assert "AQ==" not in caught.value.detail


@pytest.mark.parametrize("text", ["o\n01\n", "o\n1\n", "o\n+1\n", "o\n1\n" + "A" * 43 + "=\nmore\n"])
def test_a_checkpoint_has_one_spelling(text: str) -> None:
    assert Checkpoint.of_text(text) is None


def test_tile_paths_are_those_of_c2sp() -> None:
    assert tiles.tile_path(0, 1234067) == "tile/0/x001/x234/067"
    assert tiles.tile_path("entries", 0, 112) == "tile/entries/000.p/112"
    for path in ("0/x001/x234/067", "entries/000.p/112", "1/000.p/1", "0/999"):
        level, index, width = tiles.parse_path(path) or (None, -1, -1)
        assert tiles.tile_path("entries" if level is None else level, index, width) == f"tile/{path}"
    for wrong in ("0/x000/001", "0/1", "00/001", "0/001.p/256", "0/001.p/0", "8/000", "0/../000", "0/x001", "0/001/"):
        assert tiles.parse_path(wrong) is None, wrong


def test_every_hash_of_the_tree_is_in_its_tiles(leaves: list[bytes]) -> None:
    tree = trees.Nodes(leaves)
    tile = b"".join(leaves[:256])
    for level in range(9):
        for position in range(256 >> level):
            assert tiles.hash_in(tile, level, position) == tree(level, position)
    with pytest.raises(ValueError, match="too short"):
        tiles.hash_in(tile[:64], 2, 0)


def test_an_entry_bundle_gives_back_what_went_in() -> None:
    packed = tiles.bundle(ENTRIES)
    assert list(tiles.entries_of(packed)) == ENTRIES
    with pytest.raises(ValueError, match="ends inside"):
        list(tiles.entries_of(packed[:-1]))
    with pytest.raises(ValueError, match="is over"):
        tiles.bundle([b"x" * 65_536])


def test_a_proof_text_is_verified_offline_and_for_its_entry_only() -> None:
    signer = Signer.make("log.example/a")
    hashes = [tlog.leaf_hash(entry) for entry in ENTRIES]
    tree = trees.Nodes(hashes)
    note = notes.sign_note(Checkpoint(signer.name, 8, tlog.root_of(hashes)).text, signer)
    text = notes.proof_text(3, tlog.inclusion(3, 8, tree), note)
    assert notes.verify_proof(text, ENTRIES[3], signer.verifier) == Checkpoint(signer.name, 8, tlog.root_of(hashes))
    assert notes.verify_proof(text, ENTRIES[4], signer.verifier) is None
    assert notes.verify_proof(text.replace("index 3", "index 2"), ENTRIES[3], signer.verifier) is None
    assert notes.verify_proof(text.replace("index 3", "index 03"), ENTRIES[3], signer.verifier) is None
    assert notes.verify_proof(text, ENTRIES[3], Signer.make("log.example/a").verifier) is None
