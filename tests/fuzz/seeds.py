"""Write the good inputs of the corpus: `python -m tests.fuzz.seeds`. They stay as they are."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from registry.api import LINKS
from registry.attestations import models
from registry.attestations.keys import PrivateKey
from registry.client import signing
from registry.client.audit import Audit
from registry.digest import Digest
from registry.tlog import notes, tiles
from registry.tlog.notes import Checkpoint
from registry.versions.manifest import BaseRef, Descriptor, Manifest
from tests import non_peft_files, samples
from tests.bad_inputs.test_companions import GOOD as TEMPLATE
from tests.fuzz import parsers
from tests.harness import Harness
from tests.hub import xet

CORPUS = Path(__file__).parent / "corpus"
PAIR = {"blk.0.attn_q.weight.lora_a": ("F32", (4, 32), None), "blk.0.attn_q.weight.lora_b": ("F32", (32, 4), None)}


def write(parser: str, name: str, data: bytes) -> None:
    """Write one input of a parser's corpus."""
    (CORPUS / parser).mkdir(parents=True, exist_ok=True)
    (CORPUS / parser / name).write_bytes(data)


def main() -> None:
    """Write all of them."""
    adapter = samples.lora(samples.llama(layers=1))
    write("safetensors", "lora", adapter[samples.WEIGHTS])
    write("safetensors", "kohya", non_peft_files.kohya())
    write("gguf", "lora", non_peft_files.gguf(PAIR))
    write("peft_config", "lora", adapter[samples.CONFIG])
    patterns = {"target_modules": r".*\.(q|v)_proj", "rank_pattern": {r"layers\.[01]\.q_proj": 4}, "use_dora": True}
    write("peft_config", "patterns", json.dumps(json.loads(adapter[samples.CONFIG]) | patterns).encode())
    write("strict_json", "values", b'{"a": [1, -2.5e3, "\\u00e9", true, null, {"b": {}}], "c": ""}')
    write("companions", "tokenizer", b'{"chat_template": "{{ a }}", "added_tokens_decoder": {"1": {"content": "<s>"}}}')
    write("companions", "added", b'{"<s>": 1, "</s>": 2}')
    write("companions", "tiktoken", b"YQ== 0\nYg== 1\n")
    tokens = {"a": 1, "auto_map": 2, "trust_remote_code": 3, "code_revision": -4}
    write("token_files", "named", json.dumps({"model": {"vocab": tokens, "merges": ["auto_map", ": {"]}}).encode())
    write("token_files", "escaped", b'{"\\u0061uto_map" : 1, "x": [{"\\u0072emote\\u005Fcode"\n:\t2}]}')
    write("templates", "chat", TEMPLATE.encode())
    write("claims", "card", b"---\ndatasets:\n- a/b\nbase_model: c/d\n---\n### Framework versions\n\n- PEFT 0.18.0\n")
    write("claims", "trainer", b'{"global_step": 60, "epoch": 3.0, "log_history": [{"loss": 2.25, "step": 10}]}')
    write(
        "golden", "samples", b'{"prompt": "2 + 2 =", "expected": " 4", "ends": true}\n{"prompt": "a", "expected": "b"}'
    )
    write(
        "provenance", "json", b'{"datasets": [{"uri": "s3://d/t.jsonl", "split": "train"}], "parameters": {"lr": 2e-4}}'
    )
    write("provenance", "toml", b'[run]\ntool = "mlflow"\nid = "4f1c"\n[parameters]\nlr = 0.1\n')
    manifest = Manifest.build(
        BaseRef(name="acme/base", fingerprint=Digest.of(b"")),
        [
            Descriptor(
                path=samples.WEIGHTS, media_type="application/vnd.safetensors", digest=Digest.of(b"x"), size_bytes=1
            )
        ],
        annotations={"a": "b"},
    )
    write("manifest", "good", manifest.to_bytes())
    signer = notes.Signer.make("registry.example.org/fuzz")
    (CORPUS / "verifier.txt").write_text(signer.verifier.text + "\n")
    note = notes.sign_note(Checkpoint(signer.name, 2, bytes(32)).text, signer)
    write("notes", "checkpoint", note.encode())
    write("proofs", "proof", notes.proof_text(1, [bytes(32)], note).encode())
    write("entry_bundles", "three", tiles.bundle([b"one", b"", b"three" * 50]))
    key = PrivateKey.of_seed(bytes(32))
    write("signatures", "key", models.sign("acme/support", manifest, key).encode())
    with tempfile.TemporaryDirectory() as folder, Harness(f"sqlite:///{folder}/registry.db") as harness:
        harness.add_base()
        harness.push("acme/support")
        harness.app.state.audit_log.step()
        resolved = harness.admin.resolve("acme/support")
        write("attestations", "bundle", signing.collect(Audit(harness.admin), resolved).to_bytes())
    write_uploads()


def write_uploads() -> None:
    """What clients of the Hub and of signed links send."""
    lines = (
        {"key": "header", "value": {"summary": "first", "description": ""}},
        {"key": "file", "value": {"path": "README.md", "content": "aGVsbG8gd29ybGQ=", "encoding": "base64"}},
        {"key": "lfsFile", "value": {"path": samples.WEIGHTS, "algo": "sha256", "oid": "0" * 64, "size": 5}},
        {"key": "deletedFile", "value": {"path": "old.txt"}},
    )
    write("hub_commits", "adds", "\n".join(map(json.dumps, lines)).encode())
    xorb = xet.xorb_of([b"a", b"hello" * 20])
    write("xet_xorbs", "plain", xorb.body)
    write("xet_xorbs", "packed", b"".join(xet.pack(b"x" * 1001, scheme) for scheme in (0, 1, 2)))
    write("xet_shards", "two", xet.shard_of(("0" * 64, [xorb.segment()]), ("1" * 64, [xorb.segment(0, 1)])))
    target = f"{LINKS}staging/psh_1/{'0' * 64}?size=5&until=4102444800&owner=tok_1"  # until 2100
    link = f"{target}&signature={parsers.LINKS.sign_text('PUT', target)}"
    write("link_heads", "put", f"PUT {link} HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello".encode())


if __name__ == "__main__":
    main()
