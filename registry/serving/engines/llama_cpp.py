"""`LlamaCpp`: llama.cpp's server, which takes adapters at its start and only changes their scales.

- A version is loaded if the server was started with its file (`--lora DIR/versions/…`); else the reason says how to
  restart it. Other adapters keep their scale. A version that an earlier agent switched on is recognized by its note.
- Scales add up, so a version gets scale 1 only if the desired state has one adapter. With several, all have 0 and a
  request selects one by its number: `"lora": [{"id": 2, "scale": 1}]`. Numbers may change at each restart.
"""

import json
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from registry import names
from registry.errors import Refused, RegistryError, Unavailable
from registry.names import AdapterName
from registry.serving.engines.openai import HttpEngine
from registry.serving.store.local_store import digest_of
from registry.versions.files import NOTE

CANDIDATES = 1000
"""Most likely tokens to request; a whole vocabulary would be megabytes for each token of the prompt."""


class LlamaCpp(HttpEngine):
    is_quantized = True  # bases of llama.cpp are mostly quantized

    def __init__(self, url: str, key: str = "", **how: Any) -> None:
        super().__init__(url, key, **how)
        self._files: dict[str, Path] = {}
        self._lock = threading.Lock()

    def loaded(self) -> dict[str, str]:
        """Served name → its file, of those that the server still has."""
        there = {row["path"]: row["scale"] for row in self._rows()}
        with self._lock:
            self._files = {name: file for name, file in self._files.items() if str(file) in there}
            for path in {path for path, scale in there.items() if scale} - set(map(str, self._files.values())):
                if name := _served_name_of(Path(path)):
                    self._files[name] = Path(path)
            return {name: str(file.parent) for name, file in self._files.items()}

    def readable_paths(self, _loaded: Mapping[str, str]) -> Iterable[str]:
        """What its command line names, at any scale: it reads that again at its next start."""
        return [row["path"] for row in self._rows()]

    def load(self, served: str, folder: Path) -> None:
        """Use the file of this folder, which the server was started with. `Refused` if it was not."""
        file = _gguf(folder)
        if all(row["path"] != str(file) for row in self._rows()):
            raise Refused(
                "VERDICT_FAILED", f"llama-server takes adapters at its start only: restart it with "
                f"--lora {file} --lora-init-without-apply",
            )  # fmt: skip
        with self._lock:
            self._files[served] = file

    def unload(self, served: str) -> None:
        """Set the scale of the name's file to 0, unless another name uses it."""
        with self._lock:
            file = self._files.pop(served, None)
            needed = file in self._files.values()
        if file is not None and not needed:
            self._set({str(file): 0.0})

    def set_aliases(self, aliases: Mapping[str, str], adapters: int) -> None:
        """Give the only adapter scale 1 for requests without a name, if an alias points at it."""
        only = next(iter(aliases.values())) if len(aliases) == adapters == 1 else None
        with self._lock:
            scales = {str(file): float(name == only) for name, file in self._files.items()}
        self._set(scales)

    def logprobs(self, served: str, tokens: Sequence[int]) -> Sequence[float | None] | None:
        """One request per token: the server reports the token that follows a prompt, not the prompt's own."""
        number = self._number(served)
        logprobs: list[float | None] = []
        for end in range(1, len(tokens)):
            body = {
                "prompt": list(tokens[:end]), "n_predict": 1, "temperature": 0, "n_probs": CANDIDATES,
                "cache_prompt": False, "lora": [{"id": number, "scale": 1.0}],
            }  # fmt: skip
            likely: dict[int, float] = self._read("POST", "/completion", body, _likely)
            logprobs.append(likely.get(tokens[end]))
        return logprobs

    def _rows(self) -> list[dict[str, Any]]:
        def pick(rows: Any) -> list[dict[str, Any]]:
            return [
                {"id": int(row["id"]), "path": os.path.abspath(row["path"]), "scale": float(row["scale"])}
                for row in rows
            ]

        adapters: list[dict[str, Any]] = self._read("GET", "/lora-adapters", None, pick)
        return adapters

    def _number(self, served: str) -> int:
        with self._lock:
            file = str(self._files[served])
        number = next((int(row["id"]) for row in self._rows() if row["path"] == file), None)
        if number is None:
            raise Unavailable("SERVER_UNREACHABLE", f"the engine at {self.url} was restarted without {file}")
        return number

    def _set(self, target: Mapping[str, float]) -> None:
        """Change these scales; the server sets scales that a request omits to 0, so all are sent."""
        rows = self._rows()
        scales = [{"id": row["id"], "scale": target.get(row["path"], row["scale"])} for row in rows]
        if any(new["scale"] != row["scale"] for new, row in zip(scales, rows, strict=True)):
            self._ask("POST", "/lora-adapters", scales)


def _gguf(folder: Path) -> Path:
    files = sorted(folder.glob("*.gguf"))
    if len(files) != 1:
        raise Refused(
            "VERDICT_FAILED", f"llama.cpp takes GGUF adapters, and this version has {len(files)} such files: "
            "`adapter convert REF --format gguf` makes a version that has one",
        )  # fmt: skip
    return files[0]


def _served_name_of(file: Path) -> str:
    """The served name of a stored version by its note; empty for other files."""
    if digest_of(file.parent.name) is None:
        return ""
    try:
        note = json.loads((file.parent / NOTE).read_bytes())
        return names.served_name(AdapterName.parse(note["name"]), int(note["number"]))
    except (OSError, ValueError, KeyError, TypeError, RegistryError):
        return ""


def _likely(entry: Any) -> dict[int, float]:
    return {int(row["id"]): float(row["logprob"]) for row in entry["completion_probabilities"][0]["top_logprobs"]}
