"""What `make demo` shows: train → push → checked → smoke-tested on the base → promoted → pulled → traced back.

Invariants
- Every step is the real command in a process of its own, against a real server and a real worker.
- Nothing outside the demo's folder is read or written; the registry in it is new each time.

Example
    $ make demo
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from demo.commands import Demonstration, Failed
from registry.client.local.base_folder import base_spec_from
from tests import fixtures

BASE = "SmolLM2-135M-Instruct"
MERCHANTS = {"blackbeard/support": "pirate", "savoy/support": "formal", "northwind/support": "json"}
"""Adapter → the folder of its training. One LoRA, one DoRA, one rsLoRA."""
TONES = {
    "blackbeard/support": ("arr", "ahoy", "matey"),
    "savoy/support": ("esteemed",),
    "northwind/support": ('"sku"',),
}
PIRATE = "blackbeard/support"
WEIGHTS_FROM_BYTES = 10**6


def main(folder: Path) -> int:
    """0 when everything was as expected, 1 otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    with Demonstration(folder) as demo:
        try:
            _run(demo)
        except Failed as e:
            demo.error(str(e))
            for log in ("server.log", "worker.log"):
                if (folder / log).is_file() and (text := (folder / log).read_text().strip()):
                    print(f"--- {log}\n{text[-3000:]}", file=sys.stderr)
            return 1
    return 0


def _run(demo: Demonstration) -> None:
    trained = _train_adapters(demo)
    worker = _start_the_services(demo, trained)
    _three_merchants(demo, trained)
    _two_that_are_stopped(demo, trained)
    moment = _promote_and_roll_back(demo, trained)
    _serve_it(demo, trained)
    _look_back(demo, moment)
    _close(demo, worker)


# ------------------------------------------------------------------ 1
def _train_adapters(demo: Demonstration) -> Path:
    demo.print_title("1. Three merchants train an adapter each, on one real base")
    trained = demo.folder / f"trained-{fixtures.key()}"
    if not trained.is_dir():
        demo.print_text("  (about three minutes the first time, then kept in .demo/)")
        unfinished = demo.folder / "trained-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        demo.python("demo.adapters", str(unfinished))
        unfinished.rename(trained)
    for name, entry in json.loads((trained / "manifest.json").read_text()).items():
        demo.print_text(
            f"  {name:7} {entry['kind']:7} {entry['steps']} steps, {entry['bytes'] / 1e6:5.1f} MB, "
            f"loss {entry['first_loss']} → {entry['last_loss']}"
        )
    for name in ("home", "data", "served"):
        shutil.rmtree(demo.folder / name, ignore_errors=True)
    (demo.folder / "train").unlink(missing_ok=True)
    (demo.folder / "train").symlink_to(trained.name)
    return demo.folder / "train"


# ------------------------------------------------------------------ 2
def _start_the_services(demo: Demonstration, trained: Path) -> subprocess.Popen[str]:
    demo.print_title("2. A registry, a base, and a worker that owns the base's weights")
    server = demo.start("serve", "--data", str(demo.folder / "data"), "--port", "0", "--json", log="server.log")
    line = server.stdout.readline() if server.stdout else ""
    demo.expect(line, "the server did not start")
    started = json.loads(line)
    demo.environment |= {"ADAPTER_REGISTRY": started["url"], "ADAPTER_TOKEN": started["token"]}
    demo.print_text(f"  it listens at {started['url']}; SQLite and a folder of blobs are in data/\n")
    demo.adapter("base", "add", BASE, str(trained / "base"))
    size = (trained / "base" / "model.safetensors").stat().st_size
    _, read = base_spec_from(trained / "base", BASE)
    demo.expect(read < 0.01 * size, f"the base's weights were read: {read} of {size} bytes")
    demo.print_result(
        f"the base was registered by reading {read / 1e3:.0f} kB of its {size / 1e6:.0f} MB: the header only"
    )
    created = demo.ask("token", "create", "gpu-1", "--scope", "work", "--scope", "pull")
    worker = demo.start("worker", "--answer-tokens", "12", log="worker.log", token=created["secret"])
    demo.print_text("  it has a token for its jobs, no database and no key to the store\n")
    return worker


# ------------------------------------------------------------------ 3
def _three_merchants(demo: Demonstration, trained: Path) -> None:
    demo.print_title("3. They push; each adapter is checked against the base and tried on it")
    for name, folder in MERCHANTS.items():
        demo.adapter("push", str(trained / folder), name, "-m", f"the {folder} tone", "--wait", "--wait-timeout", "5m")
        verdicts = _verdicts(demo, name)
        passed = dict.fromkeys(("compat", "weights", "smoke"), "pass")
        demo.expect(verdicts == passed, f"{name} has the verdicts {verdicts}")
    demo.print_result("a LoRA, a DoRA and an rsLoRA adapter fit the base by their headers and act on it")
    stored = _stored(demo)
    demo.adapter("push", str(trained / "pirate"), PIRATE)
    again = demo.ask("push", str(trained / "pirate"), PIRATE)
    demo.expect(not again["created"] and _stored(demo) == stored, "the same bytes became something new")
    demo.print_result("the same bytes pushed again are the same version, and nothing is stored twice")
    demo.adapter("show", PIRATE)


# ------------------------------------------------------------------ 4
def _two_that_are_stopped(demo: Demonstration, trained: Path) -> None:
    demo.print_title("4. Two adapters that look like any other, and that are stopped here")
    demo.print_text("  One was trained on another base:\n")
    wrong = str(trained / "other-base")
    demo.adapter("push", wrong, "acme/stray", "--base", BASE, "--strict", expect=6)
    demo.adapter("promote", "acme/stray", "prod", expect=6)
    demo.expect(_verdicts(demo, "acme/stray").get("compat") == "fail", "the stray adapter was found to fit")
    demo.print_result("an adapter for another base is recorded with its reasons, and the gate of prod stays shut")
    demo.print_text("  One holds a single NaN among 4.9 million numbers; its header is perfect:\n")
    demo.adapter("push", str(trained / "nan"), "acme/broken", "--wait", "--wait-timeout", "5m")
    verdicts = _verdicts(demo, "acme/broken")
    stopped = (verdicts.get("compat"), verdicts.get("weights")) == ("pass", "fail")
    demo.expect(stopped, f"the broken adapter has {verdicts}")
    demo.adapter("promote", "acme/broken", "prod", expect=6)
    demo.print_result("an adapter with one NaN is found by its tensor's name, and cannot reach prod")


# ------------------------------------------------------------------ 5
def _promote_and_roll_back(demo: Demonstration, trained: Path) -> str:
    demo.print_title("5. Into production, forward, and back at night with one command")
    for name in MERCHANTS:
        demo.adapter("promote", name, "prod", "--reason", "first season")
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    demo.print_text("  The pirate trains on, from what is in production:\n")
    demo.adapter("push", str(trained / "pirate-more"), PIRATE, "--parent", f"{PIRATE}@1", "-m", "more doubloons",
                  "--wait", "--wait-timeout", "5m")  # fmt: skip
    demo.adapter("promote", f"{PIRATE}@2", "prod", "--reason", "more doubloons")
    demo.expect(_number(demo, f"{PIRATE}:prod") == 2, "prod does not point at version 2")
    demo.adapter("rollback", PIRATE, "prod", "--reason", "customers asked what a doubloon is")
    demo.expect(_number(demo, f"{PIRATE}:prod") == 1, "the rollback did not lead to version 1")
    demo.print_result("prod moved from 1 to 2 through its gate, and back to 1 by one command")
    return moment


# ------------------------------------------------------------------ 6
def _serve_it(demo: Demonstration, trained: Path) -> None:
    demo.print_title("6. A serving node pulls what is in production, and customers ask")
    for name in MERCHANTS:
        demo.adapter("pull", f"{name}:prod", str(demo.folder / "served" / name))
    pulled = demo.folder / "served" / PIRATE / "adapter_model.safetensors"
    same = pulled.read_bytes() == (trained / "pirate" / "adapter_model.safetensors").read_bytes()
    demo.expect(same, "what was pulled is not what was pushed")
    demo.print_result("what was pulled is, byte for byte, what was pushed")
    served = [f"{name}={demo.folder / 'served' / name}" for name in MERCHANTS]
    spoken = json.loads(demo.python("demo.answers", str(trained / "base"), *served, quiet=True).splitlines()[-1])
    answers = spoken["answers"]
    demo.print_text(f"  Customer: {spoken['question']}\n")
    for name, answer in answers.items():
        lines = textwrap.wrap(answer, 84) or [""]
        demo.print_text(f"  {name or 'base alone':20} │ {lines[0]}")
        for line in lines[1:]:
            demo.print_text(f"  {'':20} │ {line}")
    demo.print_text("")
    for name, words in TONES.items():
        heard = any(word in answers[name].lower() for word in words)
        demo.expect(heard and answers[name] != answers[""], f"{name} does not speak its tone: {answers[name]!r}")
    demo.print_result("each merchant's adapter speaks its own tone on the one base")


# ------------------------------------------------------------------ 7
def _look_back(demo: Demonstration, moment: str) -> None:
    demo.print_title("7. What an auditor asks")
    demo.print_text("  What came from what?\n")
    demo.adapter("lineage", f"{PIRATE}@2")
    demo.print_text("  Who put what into production, when, and why?\n")
    demo.adapter("history", f"{PIRATE}:prod")
    demo.print_text("  What served in the moment after the first promotion?\n")
    demo.adapter("history", f"{PIRATE}:prod", "--at", moment)
    past = demo.ask("history", f"{PIRATE}:prod", "--at", moment)["moves"]
    demo.expect([move["number"] for move in past] == [1], f"the history says that {past} held at {moment}")
    lineage = demo.ask("lineage", f"{PIRATE}@2")
    demo.expect(any(edge["relation"] == "continued" for edge in lineage["edges"]), "the lineage lacks its parent")
    demo.print_result("the history tells what held at any moment, and the lineage leads back to the base")
    demo.adapter("list")


# ------------------------------------------------------------------ 8
def _close(demo: Demonstration, worker: subprocess.Popen[str]) -> None:
    demo.print_title("8. The worker goes home")
    began = time.monotonic()
    worker.terminate()
    demo.expect(worker.wait(timeout=30) == 0, "the worker did not end in order")
    output = (demo.folder / "worker.log").read_text()
    demo.print_text(textwrap.indent(output.strip(), "  ") + "\n")
    demo.expect("5 jobs done" in output and "1 base load" in output, "the worker's tally is not the expected one")
    demo.print_result(f"five adapters were tried with one load of the base; the worker stopped in {_seconds(began)}")
    demo.print_title("What was shown")
    for message in demo.results:
        demo.print_text(f"  - {message}")
    demo.print_text(
        textwrap.dedent(f"""
        See it in a browser
          adapter serve --data {demo.folder / "data"}
                                                        open the link that it prints, which signs in; then
                                                        http://127.0.0.1:8080/adapters/{PIRATE}
        What to try next
          adapter serve --data my-registry              a registry of your own; it prints what to export
          adapter base add my-base path/to/base         any folder with config.json and *.safetensors
          adapter push path/to/adapter my-shop/support  then show, check, promote, pull
          adapter worker --once                         prove what was pushed
        README.md has the quick start, ARCHITECTURE.md describes the modules.
    """)
    )


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _verdicts(demo: Demonstration, ref: str) -> dict[str, Any]:
    return {verdict["check"]: verdict["outcome"] for verdict in demo.ask("show", ref)["verdicts"]}


def _stored(demo: Demonstration) -> set[str]:
    """The weights in the store. What is small comes by itself: what the registry attests, and the pages of its log."""
    files = (path for path in (demo.folder / "data" / "blobs" / "blobs").rglob("*") if path.is_file())
    return {path.name for path in files if path.stat().st_size >= WEIGHTS_FROM_BYTES}


def _number(demo: Demonstration, ref: str) -> int:
    return int(demo.ask("show", ref)["number"])
