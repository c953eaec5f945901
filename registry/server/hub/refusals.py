"""What Hub clients ask for and this registry does not have, with the sentences that say what to do instead."""

import fnmatch
from typing import NoReturn

from registry.errors import Invalid, Refused
from registry.findings import Finding
from registry.names import AdapterName

_MODEL_FILES = (
    "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json", "pytorch_model*.bin",
    "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack", "consolidated*.pth",
    "consolidated*.safetensors", "diffusion_pytorch_model*.safetensors", "model_index.json",
)  # fmt: skip
"""Names of files that hold a whole model."""


def refuse(message: str, next_step: str) -> NoReturn:
    """Raise `Refused` (HUB_UNSUPPORTED)."""
    raise Refused("HUB_UNSUPPORTED", message, next_step=next_step)


def refuse_model_file(path: str) -> None:
    """Raise `Invalid` (FILE_REFUSED) for a file of a whole model."""
    name = path.rsplit("/", 1)[-1].lower()
    if any(fnmatch.fnmatchcase(name, pattern) for pattern in _MODEL_FILES):
        finding = Finding("file.kind_unknown", path, "is a file of a whole model, and this registry holds adapters")
        step = "keep models in a model store, and register the base here: `adapter base add NAME DIR`"
        raise Invalid.from_finding("FILE_REFUSED", finding, next_step=step)


def refuse_type(kind: str) -> None:
    """Raise `Refused` for a data set, a space or another type of repository than a model."""
    if kind not in ("", "model", "models"):
        refuse(
            f"this registry holds adapters, and no repositories of type {kind[:20]!r}",
            "keep them in another Hub; an adapter names its data sets in README.md",
        )


def refuse_branch(name: AdapterName, branch: str) -> NoReturn:
    """Raise `Invalid` for a commit to something that is no branch."""
    raise Invalid(
        "REQUEST_INVALID", f"{branch[:200]!r} is not a branch of '{name}': versions do not change",
        next_step="commit to `main`, or to an alias",
    )  # fmt: skip
