"""Models of the caller: a PeftModel as files in memory, and an adapter's folder onto a model.

The caller's PEFT and safetensors do the work. They are taken from `sys.modules`, where a model's own import put them.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from registry.client.local.folder import Folder, read_files
from registry.errors import Invalid, printable
from registry.versions.files import CONFIG, WEIGHTS

DEFAULT_ADAPTER = "default"
"""PEFT's name for the adapter of a model that has one."""
REASON_LIMIT = 500
"""Characters of what PEFT says of a model that an adapter does not fit: torch lists every tensor."""


@runtime_checkable
class TrainedModel(Protocol):
    """A `peft.PeftModel`."""

    peft_config: Any

    def get_base_model(self) -> Any:
        """The model without adapters."""

    def load_adapter(self, folder: str, *, adapter_name: str) -> Any:
        """Load an adapter from a folder."""

    def set_adapter(self, adapter: str) -> None:
        """Make this adapter the active one."""


@contextmanager
def read_model(model: object, *, adapter: str = DEFAULT_ADAPTER, golden: Path | None = None) -> Iterator[Folder]:
    """The adapter of a PeftModel as `save_pretrained` would write it, in memory until the block ends.

    `Invalid` (FOLDER_INVALID) for a name that the model has no adapter of; (REQUEST_INVALID) for no PeftModel.
    """
    if not isinstance(model, TrainedModel):
        step = "push the PeftModel, before its adapter is merged or unloaded, or the folder that it was saved to"
        raise Invalid("REQUEST_INVALID", f"a {type(model).__name__} is no PeftModel and no folder", next_step=step)
    if adapter not in model.peft_config:
        names = ", ".join(model.peft_config)
        raise Invalid("FOLDER_INVALID", f"the model has no adapter {adapter[:80]!r}; it has {names}")
    files = {WEIGHTS: _weights_of(model, adapter), CONFIG: _config_of(model, adapter)}
    with _in_memory(files) as paths:
        yield read_files(Path(f"PeftModel adapter {adapter}"), paths, golden=golden)


def load_folder(folder: Path, model: Any, adapter: str) -> Any:
    """Load the adapter in `folder` onto a model as `adapter`, activate it, and return the model that has it.

    A diffusers pipeline and a PeftModel are returned themselves, another PyTorch model as a PeftModel around it.
    `Invalid` (REQUEST_INVALID) for anything else, for a PyTorch model without PEFT imported, and for a model that the
    adapter does not fit.
    """
    if hasattr(model, "load_lora_weights"):  # a diffusers pipeline
        with _refused_by(model):
            model.load_lora_weights(str(folder), adapter_name=adapter)
        return model
    if isinstance(model, TrainedModel):
        with _refused_by(model):
            model.load_adapter(str(folder), adapter_name=adapter)
            model.set_adapter(adapter)
        return model
    peft = sys.modules.get("peft")
    if peft is None or not isinstance(model, sys.modules["torch"].nn.Module):
        title = type(model).__name__
        next_step = "pass a PeftModel, a diffusers pipeline, or a PyTorch model after `import peft`"
        raise Invalid("REQUEST_INVALID", f"no adapter can be loaded onto a {title}", next_step=next_step)
    with _refused_by(model):
        return peft.PeftModel.from_pretrained(model, str(folder), adapter_name=adapter)


@contextmanager
def _refused_by(model: Any) -> Iterator[None]:
    """Raise `Invalid` (REQUEST_INVALID) for what PEFT and torch raise if the files do not fit the model."""
    try:
        yield
    except (RuntimeError, ValueError, KeyError) as e:
        lines = [line.strip() for line in str(e).splitlines() if line.strip()]
        detail = f"the adapter does not fit this {type(model).__name__}: {printable(' '.join(lines[:2]), REASON_LIMIT)}"
        step = "load it onto a new model of its base: PEFT may have changed this one"
        raise Invalid("REQUEST_INVALID", detail, next_step=step) from e


def _weights_of(model: TrainedModel, adapter: str) -> bytes:
    """The trained tensors as safetensors. Tensors that share memory are copied, as PEFT does."""
    peft, safetensors = sys.modules["peft"], sys.modules["safetensors"]
    tensors: dict[str, Any] = peft.get_peft_model_state_dict(model, adapter_name=adapter)
    storages: set[int] = set()
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if storage in storages else tensor.contiguous()
        storages.add(storage)
    data: bytes = safetensors.torch.save(tensors, metadata={"format": "pt"})
    return data


def _config_of(model: TrainedModel, adapter: str) -> bytes:
    """The configuration as `PeftModel.save_pretrained` writes it (peft_model.py)."""
    config, base = model.peft_config[adapter], model.get_base_model()
    values = config.to_dict() | {"inference_mode": True}
    values["base_model_name_or_path"] = config.base_model_name_or_path or vars(base).get("name_or_path") or None
    if config.task_type is None:
        names = {"base_model_class": type(base).__name__, "parent_library": type(base).__module__}
        values["auto_mapping"] = names
    plain = {key: sorted(value) if isinstance(value, set) else value for key, value in values.items()}
    return json.dumps(plain, indent=2, sort_keys=True).encode()


@contextmanager
def _in_memory(files: dict[str, bytes]) -> Iterator[dict[str, Path]]:
    """A path for each content: an anonymous file in memory; on systems other than Linux a temporary file."""
    if not hasattr(os, "memfd_create"):
        with tempfile.TemporaryDirectory(prefix="adapter-") as folder:
            paths = {name: Path(folder) / name for name in files}
            for name, path in paths.items():
                path.write_bytes(files.pop(name))
            yield paths
        return
    descriptors: dict[str, int] = {}
    try:
        for name in list(files):
            descriptors[name] = os.memfd_create(name, os.MFD_CLOEXEC)
            with open(descriptors[name], "wb", closefd=False) as file:
                file.write(files.pop(name))
        yield {name: Path(f"/proc/self/fd/{descriptor}") for name, descriptor in descriptors.items()}
    finally:
        for descriptor in descriptors.values():
            os.close(descriptor)
