"""What runs in a child of the model process: `IsolatedRun` tests one adapter, `SharedRun` tests them one after another.

An answer is one of
    {"result": …}                       with `structure` if that was requested
    {"failed": reason, "memory": bool}  this process could not judge the adapter
    {"isolate": reason}                 `SharedRun` only: this adapter needs a process of its own
    {"discard": reason}                 `SharedRun` only: this model object may be changed; end the process

On a GPU each child is a new process that loads the base itself, because a process that holds a GPU cannot be forked;
it reports each load.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.adapters import peft, safetensors
from registry.adapters.peft import LoraSpec, config
from registry.adapters.peft.config import AdapterConfig
from registry.evaluation.thresholds import Thresholds
from registry.files import CONFIG, WEIGHTS
from registry.worker.devices import CPU
from registry.worker.model.language import LoadedBase
from registry.worker.smoke import isolated, resident, structure
from registry.worker.smoke.faults import first_line, machine_fault, out_of_memory
from registry.worker.smoke.resident import Discard, Resident
from registry.worker.smoke.result import SmokeResult

Message = dict[str, Any]
Say = Callable[[Message], None]


@dataclass(frozen=True, slots=True)
class Loader:
    """How to load the base: its name, folder, device and dtype."""

    name: str
    folder: Path
    device: str = CPU
    dtype: str = ""

    @property
    def forks(self) -> bool:
        """Whether the model process loads the base once and forks; otherwise each child loads it."""
        return self.device == CPU

    def load(self) -> Any:
        """Load a `LoadedBase`; a subclass may load anything with `load_seconds` and `parameters`."""
        return LoadedBase.load(self.folder, self.name, device=self.device, dtype=self.dtype)


class IsolatedRun:
    """Test one adapter of any kind."""

    def __init__(self, base: Any, loader: Loader) -> None:
        """`base` is a `LoadedBase`, or the image model of a subclass; None before it is loaded."""
        self._base = base
        self._loader = loader

    def answer(self, request: Message, say: Say) -> Message:
        """Answer one request; never raises."""
        try:
            answer = self._answer(request, say)
            if request.get("structure") and "result" in answer:
                findings = structure.ask(self._loader.folder, Path(request["folder"]))
                answer["structure"] = [finding.model_dump(mode="json") for finding in findings]
            return answer
        except BaseException as e:
            return failed(e)

    def base(self, say: Say) -> Any:
        if self._base is None:
            self._base = self._loader.load()
            say({"loaded": {"load_seconds": round(self._base.load_seconds, 3), "parameters": self._base.parameters}})
        return self._base

    def _answer(self, request: Message, say: Say) -> Message:
        folder = Path(request["folder"])
        base = self.base(say)
        result = isolated.examine(base, folder, _config_of(folder), thresholds_of(request), say=progress_to(say))
        result.measurements.setdefault("mode", "isolated")
        return {"result": result.to_message()}


class SharedRun(IsolatedRun):
    """Test adapters one after another on one model object."""

    def __init__(self, base: LoadedBase | None, loader: Loader) -> None:
        super().__init__(base, loader)
        self._resident: Resident | None = None

    def _answer(self, request: Message, say: Say) -> Message:
        folder = Path(request["folder"])
        written = _config_of(folder)
        spec = _spec_of(folder, written)
        base = self.base(say)
        reason = resident.reason_to_isolate(base, written, spec)
        beside = bool(reason) and self._loader.device != CPU and resident.may_share_base(written, spec)
        if request.get("any_name"):
            reason, beside = "", True
        if reason and not beside:
            return {"isolate": reason}
        try:
            result = self._examine(base, folder, written, spec, request, say, beside=beside)
        except Discard as e:
            return {"discard": str(e)}
        except Exception as e:
            if machine_fault(e):
                raise
            return {"discard": first_line(e)}
        return {"result": result.to_message()}

    def _examine(
        self,
        base: LoadedBase,
        folder: Path,
        written: AdapterConfig,
        spec: LoraSpec,
        request: Message,
        say: Say,
        *,
        beside: bool,
    ) -> SmokeResult:
        if self._resident is None:
            self._resident = Resident(base)
        self._resident.say = progress_to(say)
        if beside:
            return self._resident.examine_beside(folder, written, thresholds_of(request))
        return self._resident.examine(folder, written, spec, thresholds_of(request))


def failed(error: BaseException) -> Message:
    """The answer of an attempt that says nothing about the adapter."""
    memory = out_of_memory(error)
    what = "out of memory" if memory else "the smoke test stopped"
    return {"failed": f"{what}: {first_line(error)}", "memory": memory}


def progress_to(say: Say) -> Callable[[str], None]:
    return lambda progress: say({"says": progress})


def thresholds_of(request: Message) -> Thresholds:
    return Thresholds.with_overrides(request.get("thresholds") or {})


def _config_of(folder: Path) -> AdapterConfig:
    return config.read_config((folder / CONFIG).read_bytes())


def _spec_of(folder: Path, written: AdapterConfig) -> LoraSpec:
    weights = folder / WEIGHTS
    with open(weights, "rb") as file:

        def read(start: int, length: int) -> bytes:
            file.seek(start)
            return file.read(length)

        return peft.describe(written, safetensors.read_header(read, weights.stat().st_size, file=weights.name))
