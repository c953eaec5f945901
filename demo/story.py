"""The story that `make demo` tells: train → push → checked → proven on the base → promoted → pulled → traced back.

Invariants
- Every step is the real command in a process of its own, against a real server and a real worker.
- Nothing outside the demonstration's folder is read or written; the registry in it is new each time.

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

from demo.stage import Failed, Stage
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
    """0 when everything was as the story says, 1 otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    with Stage(folder) as stage:
        try:
            _tell(stage)
        except Failed as e:
            stage.error(str(e))
            for log in ("server.log", "worker.log"):
                if (folder / log).is_file() and (text := (folder / log).read_text().strip()):
                    print(f"--- {log}\n{text[-3000:]}", file=sys.stderr)
            return 1
    return 0


def _tell(stage: Stage) -> None:
    props = _props(stage)
    worker = _open_the_house(stage, props)
    _three_merchants(stage, props)
    _two_that_are_stopped(stage, props)
    moment = _promote_and_roll_back(stage, props)
    _serve_it(stage, props)
    _look_back(stage, moment)
    _close(stage, worker)


# ------------------------------------------------------------------ 1
def _props(stage: Stage) -> Path:
    stage.chapter("1. Three merchants train an adapter each, on one real base")
    made = stage.folder / f"props-{fixtures.key()}"
    if not made.is_dir():
        stage.tell("  (about three minutes the first time, then kept in .demo/)")
        unfinished = stage.folder / "props-unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        stage.python("demo.props", str(unfinished))
        unfinished.rename(made)
    for name, entry in json.loads((made / "manifest.json").read_text()).items():
        stage.tell(
            f"  {name:7} {entry['kind']:7} {entry['steps']} steps, {entry['bytes'] / 1e6:5.1f} MB, "
            f"loss {entry['first_loss']} → {entry['last_loss']}"
        )
    for name in ("home", "data", "served"):
        shutil.rmtree(stage.folder / name, ignore_errors=True)
    (stage.folder / "train").unlink(missing_ok=True)
    (stage.folder / "train").symlink_to(made.name)
    return stage.folder / "train"


# ------------------------------------------------------------------ 2
def _open_the_house(stage: Stage, props: Path) -> subprocess.Popen[str]:
    stage.chapter("2. A registry, a base, and a worker that owns the base's weights")
    server = stage.start("serve", "--data", str(stage.folder / "data"), "--port", "0", "--json", log="server.log")
    line = server.stdout.readline() if server.stdout else ""
    stage.expect(line, "the server did not start")
    started = json.loads(line)
    stage.environment |= {"ADAPTER_REGISTRY": started["url"], "ADAPTER_TOKEN": started["token"]}
    stage.tell(f"  it answers at {started['url']}; SQLite and a folder of blobs are in data/\n")
    stage.adapter("base", "add", BASE, str(props / "base"))
    size = (props / "base" / "model.safetensors").stat().st_size
    _, read = base_spec_from(props / "base", BASE)
    stage.expect(read < 0.01 * size, f"the base's weights were read: {read} of {size} bytes")
    stage.proves(f"the base was registered by reading {read / 1e3:.0f} kB of its {size / 1e6:.0f} MB: the header only")
    created = stage.ask("token", "create", "gpu-1", "--scope", "work", "--scope", "pull")
    worker = stage.start("worker", log="worker.log", token=created["secret"])
    stage.tell("  it has a token for its jobs, no database and no key to the store\n")
    return worker


# ------------------------------------------------------------------ 3
def _three_merchants(stage: Stage, props: Path) -> None:
    stage.chapter("3. They push; each adapter is checked against the base and tried on it")
    for name, folder in MERCHANTS.items():
        stage.adapter("push", str(props / folder), name, "-m", f"the {folder} tone", "--wait", "--timeout", "300")
        verdicts = _verdicts(stage, name)
        passed = dict.fromkeys(("compat", "weights", "smoke"), "pass")
        stage.expect(verdicts == passed, f"{name} has the verdicts {verdicts}")
    stage.proves("a LoRA, a DoRA and an rsLoRA adapter fit the base by their headers and act on it")
    stored = _stored(stage)
    stage.adapter("push", str(props / "pirate"), PIRATE)
    again = stage.ask("push", str(props / "pirate"), PIRATE)
    stage.expect(not again["created"] and _stored(stage) == stored, "the same bytes became something new")
    stage.proves("the same bytes pushed again are the same version, and nothing is stored twice")
    stage.adapter("show", PIRATE)


# ------------------------------------------------------------------ 4
def _two_that_are_stopped(stage: Stage, props: Path) -> None:
    stage.chapter("4. Two adapters that look like any other, and that are stopped here")
    stage.tell("  One was trained on another base:\n")
    wrong = str(props / "other-base")
    stage.adapter("push", wrong, "acme/stray", "--base", BASE, "--strict", expect=6)
    stage.adapter("promote", "acme/stray", "prod", expect=6)
    stage.expect(_verdicts(stage, "acme/stray").get("compat") == "fail", "the stray adapter was found to fit")
    stage.proves("an adapter for another base is recorded with its reasons, and the gate of prod stays shut")
    stage.tell("  One holds a single NaN among 4.9 million numbers; its header is perfect:\n")
    stage.adapter("push", str(props / "nan"), "acme/broken", "--wait", "--timeout", "300")
    verdicts = _verdicts(stage, "acme/broken")
    stage.expect((verdicts["compat"], verdicts["smoke"]) == ("pass", "fail"), f"the broken adapter has {verdicts}")
    stage.adapter("promote", "acme/broken", "prod", expect=6)
    stage.proves("an adapter with one NaN is found by its tensor's name, and cannot reach prod")


# ------------------------------------------------------------------ 5
def _promote_and_roll_back(stage: Stage, props: Path) -> str:
    stage.chapter("5. Into production, forward, and back at night with one command")
    for name in MERCHANTS:
        stage.adapter("promote", name, "prod", "--reason", "first season")
    moment = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    stage.tell("  The pirate trains on, from what is in production:\n")
    stage.adapter("push", str(props / "pirate-more"), PIRATE, "--parent", f"{PIRATE}@1", "-m", "more doubloons",
                  "--wait", "--timeout", "300")  # fmt: skip
    stage.adapter("promote", f"{PIRATE}@2", "prod", "--reason", "more doubloons")
    stage.expect(_number(stage, f"{PIRATE}:prod") == 2, "prod does not point at version 2")
    stage.adapter("rollback", PIRATE, "prod", "--reason", "customers asked what a doubloon is")
    stage.expect(_number(stage, f"{PIRATE}:prod") == 1, "the rollback did not lead to version 1")
    stage.proves("prod moved from 1 to 2 through its gate, and back to 1 by one command")
    return moment


# ------------------------------------------------------------------ 6
def _serve_it(stage: Stage, props: Path) -> None:
    stage.chapter("6. A serving node pulls what is in production, and customers ask")
    for name in MERCHANTS:
        stage.adapter("pull", f"{name}:prod", str(stage.folder / "served" / name))
    pulled = stage.folder / "served" / PIRATE / "adapter_model.safetensors"
    same = pulled.read_bytes() == (props / "pirate" / "adapter_model.safetensors").read_bytes()
    stage.expect(same, "what was pulled is not what was pushed")
    stage.proves("what was pulled is, byte for byte, what was pushed")
    served = [f"{name}={stage.folder / 'served' / name}" for name in MERCHANTS]
    spoken = json.loads(stage.python("demo.answers", str(props / "base"), *served, quiet=True).splitlines()[-1])
    answers = spoken["answers"]
    stage.tell(f"  Customer: {spoken['question']}\n")
    for name, answer in answers.items():
        lines = textwrap.wrap(answer, 84) or [""]
        stage.tell(f"  {name or 'base alone':20} │ {lines[0]}")
        for line in lines[1:]:
            stage.tell(f"  {'':20} │ {line}")
    stage.tell("")
    for name, words in TONES.items():
        heard = any(word in answers[name].lower() for word in words)
        stage.expect(heard and answers[name] != answers[""], f"{name} does not speak its tone: {answers[name]!r}")
    stage.proves("each merchant's adapter speaks its own tone on the one base")


# ------------------------------------------------------------------ 7
def _look_back(stage: Stage, moment: str) -> None:
    stage.chapter("7. What an auditor asks")
    stage.tell("  What came from what?\n")
    stage.adapter("lineage", f"{PIRATE}@2")
    stage.tell("  Who put what into production, when, and why?\n")
    stage.adapter("history", f"{PIRATE}:prod")
    stage.tell("  What served in the moment after the first promotion?\n")
    stage.adapter("history", f"{PIRATE}:prod", "--at", moment)
    held = stage.ask("history", f"{PIRATE}:prod", "--at", moment)["moves"]
    stage.expect([move["number"] for move in held] == [1], f"the history says that {held} held at {moment}")
    lineage = stage.ask("lineage", f"{PIRATE}@2")
    stage.expect(any(edge["relation"] == "continued" for edge in lineage["edges"]), "the lineage lacks its parent")
    stage.proves("the history tells what held at any moment, and the lineage leads back to the base")
    stage.adapter("list")


# ------------------------------------------------------------------ 8
def _close(stage: Stage, worker: subprocess.Popen[str]) -> None:
    stage.chapter("8. The worker goes home")
    began = time.monotonic()
    worker.terminate()
    said = worker.stdout.read() if worker.stdout else ""
    stage.expect(worker.wait(timeout=30) == 0, "the worker did not end in order")
    stage.tell(textwrap.indent(said.strip(), "  ") + "\n")
    stage.expect("5 jobs done" in said and "1 base load" in said, "the worker's tally is another than the story's")
    stage.proves(f"five adapters were tried with one load of the base; the worker stopped in {_seconds(began)}")
    stage.chapter("What was proven")
    for message in stage.proven:
        stage.tell(f"  - {message}")
    stage.tell(
        textwrap.dedent("""
        What to try next
          adapter serve --data my-registry              a registry of your own; it prints what to export
          adapter base add my-base path/to/base         any folder with config.json and *.safetensors
          adapter push path/to/adapter my-shop/support  then show, check, promote, pull
          adapter worker --once                           prove what was pushed
        README.md has the quick start, ARCHITECTURE.md describes the modules.
    """)
    )


def _seconds(began: float) -> str:
    return f"{time.monotonic() - began:.1f} s"


def _verdicts(stage: Stage, ref: str) -> dict[str, Any]:
    return {verdict["check"]: verdict["outcome"] for verdict in stage.ask("show", ref)["verdicts"]}


def _stored(stage: Stage) -> set[str]:
    """The weights in the store. What is small comes by itself: what the registry attests, and the pages of its log."""
    files = (path for path in (stage.folder / "data" / "blobs" / "blobs").rglob("*") if path.is_file())
    return {path.name for path in files if path.stat().st_size >= WEIGHTS_FROM_BYTES}


def _number(stage: Stage, ref: str) -> int:
    return int(stage.ask("show", ref)["number"])
