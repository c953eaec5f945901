"""Record what the real tool writes, for runs without it: `make test-signing`, then `python -m tests.signing.record`."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from registry.digest import Digest
from tests.signing import tool
from tests.signing.setup import LEFT_OUT, RECORDED, SigningSetup
from tests.worker import models


def adapter(folder: Path) -> Path:
    """The folder that training leaves: PEFT's two files and its README, and a pickle that is never pushed."""
    base = models.base(folder / "tiny")
    folder_ = models.adapter(base, folder / "out")
    (folder_ / LEFT_OUT).write_bytes(b"not a pickle, and not looked at")
    return folder_


def main() -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        trained = adapter(folder)
        files = {path.name: path.read_bytes() for path in sorted(trained.iterdir())}
        record: dict[str, Any] = {"tool": f"model-signing {tool.VERSION}", "files": {}, "signed": {}}
        record["files"] = {name: [str(Digest.of(data)), len(data)] for name, data in files.items()}
        for signed in SigningSetup(folder / "stand").signed(tool.Tool(), trained):
            with_what = (
                {"public_key": signed.public_key.decode()} if signed.public_key else {"root": signed.root.decode()}
            )
            record["signed"][signed.way] = {"bundle": signed.bundle.read_text(), **with_what}
    RECORDED.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
