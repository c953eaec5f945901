"""Write an engine's generated rules from the source of a release (`make engine-rules`).

python -m scripts.engine_rules vllm 0.33.0                    asks pip for the wheel's address and reads parts of it
python -m scripts.engine_rules vllm 0.33.0 vllm-0.33.0.whl    a wheel, a source distribution, an unpacked folder
python -m scripts.engine_rules vllm 0.33.0 --check WHERE      exits 1 if the file says something else
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.engine_rules import ENGINES, generated, read, write


def main(arguments: list[str]) -> int:
    is_check = "--check" in arguments
    words = [word for word in arguments if word != "--check"]
    if len(words) not in (2, 3) or words[0] not in ENGINES or not re.fullmatch(r"\d+(\.\w+)+", words[1]):
        sys.stderr.write(f"usage: python -m scripts.engine_rules {'|'.join(ENGINES)} VERSION [WHEEL] [--check]\n")
        return 2
    engine, version = words[:2]
    where = words[2] if len(words) == 3 and words[2] else _address(engine, version)
    facts = read(engine, where)
    classes: dict[str, Any] = facts["classes"]
    if is_check:
        return 0 if generated(engine).get(version) == facts else 1
    path = write(engine, {**generated(engine), version: facts})
    with_lora = sum(bool(row["lora"]) for row in classes.values())
    sys.stdout.write(
        f"{engine} {version}: {len(facts['architectures'])} architectures, {len(classes)} classes, "
        f"{with_lora} with LoRA -> {path}\n"
    )
    return 0


def _address(engine: str, version: str) -> str:
    """Where pip would download the wheel from."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "report.json"
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps", "--ignore-installed",
             "--only-binary", ":all:", "--report", str(report), f"{engine}=={version}"], check=True,
        )  # fmt: skip
        return str(json.loads(report.read_text())["install"][0]["download_info"]["url"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
