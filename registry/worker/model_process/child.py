"""What runs in a child of the model process: `IsolatedRun` tests one adapter, `SharedRun` tests them one after another.

A response is one of
    {"result": …}
    {"failed": reason, "memory": bool}  this process could not evaluate the adapter; `memory`: it ran out of it
    {"isolate": reason}                 `SharedRun` only: this adapter needs a process of its own
    {"discard": reason}                 `SharedRun` only: this model object may be changed; end the process

On a GPU each child is a new process that loads the base itself, because a process that holds a GPU cannot be forked;
it reports each load.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.evaluation.thresholds import Thresholds
from registry.worker.devices import CPU
from registry.worker.model.language import LoadedBase
from registry.worker.model.updates import read_adapter
from registry.worker.sandbox import namespaces
from registry.worker.smoke import shared
from registry.worker.smoke.isolated import IsolatedTest
from registry.worker.smoke.result import SmokeResult, first_line, machine_fault, out_of_memory
from registry.worker.smoke.shared import Discard, SharedModel
from registry.worker.smoke.structure import NeedsValues, Structures

Message = dict[str, Any]
Send = Callable[[Message], None]


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

    @property
    def visible_folders(self) -> list[str]:
        """What stays visible to the process that tests adapters."""
        return namespaces.visible_folders(self._loader.folder)

    def respond(self, request: Message, send: Send) -> Message:
        """Handle one request; never raises."""
        try:
            return self._respond(request, send)
        except BaseException as e:
            return failed(e)

    def base(self, send: Send) -> Any:
        """The base, loaded on first use."""
        if self._base is None:
            self._base = self._loader.load()
            send({"loaded": {"load_seconds": round(self._base.load_seconds, 3), "parameters": self._base.parameters}})
        return self._base

    def _respond(self, request: Message, send: Send) -> Message:
        result = self.examine(Path(request["folder"]), request, send)
        result.execution.setdefault("mode", "isolated")
        return {"result": result.to_message()}

    def examine(self, folder: Path, request: Message, send: Send) -> SmokeResult:
        """Run the smoke test."""
        config, base = read_adapter(folder).config, self.base(send)
        structures = None if request.get("any_name") else Structures(base.model)
        thresholds, say = thresholds_of(request), progress_to(send)
        tokens = request["answer_tokens"]
        return IsolatedTest(
            base, folder, config, thresholds, structures=structures, say=say, answer_tokens=tokens
        ).run()


class SharedRun(IsolatedRun):
    """Test adapters one after another on one model object."""

    def __init__(self, base: LoadedBase | None, loader: Loader) -> None:
        super().__init__(base, loader)
        self._shared: SharedModel | None = None

    def _respond(self, request: Message, send: Send) -> Message:
        folder, thresholds = Path(request["folder"]), thresholds_of(request)
        contents = read_adapter(folder)
        base = self.base(send)
        reason = shared.reason_to_isolate(base, contents)
        beside = bool(reason) and self._loader.device != CPU and shared.may_share_base(contents)
        any_name = bool(request.get("any_name"))
        if any_name:
            reason, beside = "", True
        if reason and not beside:
            return {"isolate": reason}
        try:
            if self._shared is None:
                self._shared = SharedModel(base, request["answer_tokens"])
            self._shared.say = progress_to(send)
            if beside:
                result = self._shared.examine_beside(folder, contents.config, thresholds, any_name=any_name)
            else:
                result = self._shared.examine(folder, contents, thresholds)
        except Discard as e:
            return {"discard": str(e)}
        except NeedsValues as e:
            return {"isolate": f"PEFT cannot build it on the meta device: {e}"}
        except Exception as e:
            if machine_fault(e):
                raise
            return {"discard": first_line(e)}
        return {"result": result.to_message()}


def failed(error: BaseException) -> Message:
    """The response of an attempt that says nothing about the adapter."""
    memory = out_of_memory(error)
    reason = "out of memory" if memory else "the smoke test stopped"
    return {"failed": f"{reason}: {first_line(error)}", "memory": memory}


def progress_to(send: Send) -> Callable[[str], None]:
    """A function that sends progress messages."""
    return lambda text: send({"progress": text})


def thresholds_of(request: Message) -> Thresholds:
    """The default thresholds with those of the request."""
    return Thresholds.with_overrides(request.get("thresholds") or {})
