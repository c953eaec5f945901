"""A registry with something to look at, on a port: what the browser tests visit and what the screenshots show.

python -m tests.web.site                serve it until Ctrl-C, and print a link that signs in
"""

from __future__ import annotations

import base64
import json
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from registry.api.access import NamespaceSet, PublisherAdd
from registry.api.audit.webhooks import WebhookCreate
from registry.api.bases import BaseAdd
from registry.api.jobs import CampaignRequest
from registry.api.serving import NodeReport, SlotReport, SlotState
from registry.client.audit import Audit
from registry.digest import Digest
from registry.evaluation.gates import Gate
from registry.evaluation.reports import Answer
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.server.access.issuers import Issuers
from registry.versions.manifest import Edge, Relation
from registry.versions.provenance import Code, Dataset, Provenance, Run
from registry.versions.retention import RetentionRule
from tests import samples
from tests.access.identity import ISSUER, LoginServer, Provider
from tests.access.tenants import send
from tests.harness import Harness
from tests.processes import free_port
from tests.worker import image_cases

ENGINES = "vllm==0.33.0,max_lora_rank=32 sglang==0.5.23"
README = """---
license: apache-2.0
base_model: tiny-llama
datasets: [acme/support-chats]
---
# Support assistant

Answers questions of customers about **orders, returns and invoices** in the tone of the shop.

## Intended use

Load it on `tiny-llama` with any engine below. It was trained on 12,400 conversations of 2025 and 2026 that
customers agreed to share.

| language | conversations | accuracy |
|---|---|---|
| English | 9,100 | 0.94 |
| German | 2,300 | 0.91 |
| French | 1,000 | 0.88 |

## Limits

- It knows nothing about prices. Ask the [price service](https://example.org/prices).
- Do not use it for legal advice.

```python
print("Where is my order?")
```
"""
GOLDEN = (
    {"prompt": "Where is my order 4711?", "expected": "It left our warehouse this morning."},
    {"prompt": "Wie schicke ich etwas zurück?", "expected": "Mit dem Etikett aus dem Paket, innerhalb von 30 Tagen."},
)
GOLDEN_RESULTS = (
    {"base_log_p": -2.31, "log_p": -0.42, "margin_nats": 0.1}, {"base_log_p": -1.9, "log_p": -2.05, "margin_nats": 0.1},
)  # fmt: skip
ANSWERS = (
    Answer(
        prompt="Customer: My order has not arrived yet. What can I do?\nShop:",
        base=" I'm sorry, but I can't help you with that.\nCustomer: I'm sorry",
        adapter=" We are sorry for the wait. Please send us the number of your order.",
    ),
    Answer(prompt="The train to the coast leaves at nine, and the", base=" train to", adapter=" last one at ten"),
    Answer(prompt=str(GOLDEN[0]["prompt"]), base=" I", adapter="It left our warehouse this morning."),
)  # fmt: skip
NEXT_TOKENS = (
    Answer(
        prompt=ANSWERS[0].prompt, base="' I' 31%, ' The' 12%, ' We' 9%", adapter="' We' 64%, ' Please' 20%, ' I' 3%"
    ),
)
LONG = "a-very-long-adapter-name-that-somebody-generated-0123456789-tenant"


@dataclass
class Site:
    """A running registry, and the identity provider by which Alice signs in. `secret` is the administrator's token."""

    url: str
    harness: Harness
    provider: LoginServer

    @property
    def secret(self) -> str:
        return self.harness.secret

    def sign_in_link(self) -> str:
        """A link that signs a browser in, once."""
        return f"{self.url}/sign-in/{self.harness.app.state.sign_in_links.create()}"


@contextmanager
def serve(harness: Harness) -> Iterator[Site]:
    """Serve the application of a harness on a free port."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(harness.app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, daemon=True)
    started = threading.Event()
    startup = server.startup

    async def start(*arguments: object, **options: object) -> None:
        await startup(*arguments, **options)  # type: ignore[arg-type]
        started.set()

    server.startup = start  # type: ignore[method-assign]
    thread.start()
    assert started.wait(120), "the server has not started"
    try:
        with tempfile.TemporaryDirectory() as folder, LoginServer(Path(folder)).running() as provider:
            Path(folder, "ci").mkdir()
            provider.also_trust(Provider(Path(folder, "ci")))
            harness.app.state.issuers = Issuers.read(provider.settings)
            yield Site(f"http://127.0.0.1:{port}", harness, provider)
    finally:
        server.should_exit = True
        thread.join(30)


def fill(harness: Harness) -> None:
    """Namespaces, bases, adapters with many versions, verdicts of every kind, aliases, gates and lineage."""
    base = samples.llama()
    harness.add_base(base, source="hf://example/tiny-llama")
    harness.admin.create_namespace("acme", owner="alice@acme.example")
    harness.admin.create_namespace("globex", owner="bob@globex.example")
    harness.admin.create_namespace("library", owner="carol@library.example")
    harness.admin.change_namespace("library", NamespaceSet(public=True))
    provenance = Provenance(
        datasets=(Dataset(name="support-chats", uri="s3://acme/support-chats", digest=Digest.of(b"chats")),),
        run=Run(tool="mlflow", id="run-481", url="https://mlflow.example.org/runs/481"),
        code=Code(repository="https://git.example.org/acme/train", commit="4" * 40),
        parameters={"learning_rate": "0.0002", "epochs": "3", "seed": "7"},
    )
    messages = ("first try", "more German conversations", "shorter answers", "retrained on data of October")
    for message, rank in zip(messages, (8, 8, 16, 8), strict=True):
        files = dict(harness.files(base, rank=rank)) | {
            "README.md": README.encode(),
            "trainer_state.json": _trainer_state(rank),
            "golden.jsonl": b"".join(json.dumps(sample).encode() + b"\n" for sample in GOLDEN),
        }
        harness.push("acme/support", files, message=message, provenance=provenance)
    earlier = ("\nCustomer: Thank you.", " last one", "It left")
    answers = tuple(answer.model_copy(update={"adapter": text}) for answer, text in zip(ANSWERS, earlier, strict=True))
    harness.validate("acme/support@1", answers=NEXT_TOKENS)
    harness.validate("acme/support@2", [_warning()], answers=answers)
    harness.validate("acme/support@3", golden=GOLDEN_RESULTS, answers=ANSWERS)
    harness.validate("acme/support@4", [_failure()])
    registry = harness.admin
    registry.promote("acme/support", "prod", "1", generation=0, reason="first release")
    registry.promote("acme/support", "canary", "3", generation=0, reason="for 5 % of the shops")
    registry.promote("acme/support", "prod", "2", generation=1, reason="German shops asked for it")
    registry.set_gate("acme", "prod", Gate(requires=(Check.COMPAT, Check.SMOKE), approvals=1))
    registry.yank("acme/support@1", reason="answers about prices were invented")
    parent = registry.version("acme/support@3")
    edge = Edge(relation=Relation.MERGED, digest=parent.digest, name="acme/support@3")
    harness.push("acme/support-de", parents=[edge], message="German only")
    child = registry.version("acme/support-de@1")
    harness.push(
        "acme/invoices", parents=[Edge(relation=Relation.MERGED, digest=child.digest, name="acme/support-de@1"), edge]
    )
    harness.push("library/hello", dict(harness.files(base)) | {"README.md": b"# Hello\n\nA public example.\n"})
    harness.push("globex/secret", provenance=provenance)
    harness.push(f"globex/{LONG[:64]}")
    for number in range(24):
        harness.push(f"acme/merchant-{number:03}")
    _push_image_adapter(harness)
    report_nodes(harness)
    _fill_settings(harness)
    send(harness, "GET", "/api/v1/events", harness.secret)  # numbers and signs the events


def _push_image_adapter(harness: Harness) -> None:
    """A style whose smoke test has made an image without it, and one with it."""
    spec = harness.bases["flux-tiny"] = image_cases.bases()["flux-tiny"]
    harness.admin.add_base(BaseAdd(spec=spec))
    files = {"sketch.safetensors": image_cases.CASES["flux-kohya"].file, "README.md": b"# Pencil sketch\n"}
    harness.push("acme/sketch", files, base="flux-tiny", message="after 2,000 steps")
    images = {name: base64.b64encode(_png(shade)).decode() for name, shade in (("before", 0), ("after", 90))}
    harness.validate("acme/sketch@1", images=images, measurements={"mean_pixel_delta": 0.21})


def _png(shade: int, side: int = 256) -> bytes:
    """A gradient."""
    numbers = range(side)
    rows = (bytes(value for x in numbers for value in (x // 2 + shade, y // 2 + shade, 120)) for y in numbers)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    parts = (b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0), b"IDAT" + pixels, b"IEND")
    chunks = (struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _trainer_state(rank: int) -> bytes:
    losses = (2.4 / (1 + step / 9) + 0.12 * ((step * 7) % 5) / (1 + step / 4) + 1 / rank for step in range(24))
    log = [{"step": 20 * step, "loss": round(loss, 4)} for step, loss in enumerate(losses)]
    return json.dumps({"global_step": 460, "epoch": 3.0, "log_history": log}).encode()


def report_nodes(harness: Harness) -> None:
    """Three nodes follow `canary` of acme/support: one serves it, one still loads it, one refuses it."""
    version = harness.admin.version("acme/support:canary")
    for number, (state, reason) in enumerate(
        ((SlotState.SERVING, ""), (SlotState.LOADING, ""), (SlotState.REFUSED, "rank 16 is over max_lora_rank=8"))
    ):
        slot = SlotReport(
            adapter="acme/support", digest=version.digest, served_name=f"acme/support@{version.number}", state=state,
            reason=reason, verified=True,
        )  # fmt: skip
        report = NodeReport(base="tiny-llama", alias="canary", profile=f"vllm==0.33.0,node={number}", slots=[slot])
        harness.admin.report_node(f"gpu-{number}", "vllm", report)


def _fill_settings(harness: Harness) -> None:
    """Members, limits, a retention rule, a trusted publisher, a webhook, tokens, and a campaign."""
    registry = harness.admin
    registry.grant_role("acme", "group:ml-platform", "promoter")
    registry.grant_role("acme", "carol@acme.example", "pusher")
    registry.change_namespace("acme", NamespaceSet(quota_bytes=2**30, quota_versions=5000, pushes_per_hour=200))
    registry.set_retention("acme/support", RetentionRule(keep_newest=3, keep_seconds=30 * 86400))
    registry.add_publisher("acme/support", PublisherAdd(issuer=ISSUER, claims={"repository": "acme/train"}))
    Audit(registry).create_webhook(WebhookCreate(url="https://ci.example.org/hooks/adapters", namespace="acme"))
    harness.issue("push", namespaces=["acme"], name="trainer of acme", seconds=90 * 86400)
    harness.issue("pull", name="nodes")
    registry.start_campaign(CampaignRequest(base="tiny-llama"))


def _warning() -> Finding:
    return Finding.of("warning", "smoke.drift", "neutral text", "changes neutral text by 0.31 nats, more than 0.2")


def _failure() -> Finding:
    return Finding.of("error", "smoke.not_finite", "logits", "the logits of probe 3 hold NaN")


def main() -> None:
    """Serve the site until Ctrl-C."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Harness(f"sqlite:///{folder}/registry.db", engines=ENGINES) as harness,
    ):
        fill(harness)
        with serve(harness) as site:
            print(json.dumps({"url": site.url, "token": site.secret, "link": site.sign_in_link()}), flush=True)
            threading.Event().wait()


if __name__ == "__main__":
    main()
