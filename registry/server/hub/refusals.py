"""What Hub clients ask for and this registry does not have, with the sentences that say what to do instead."""

from typing import NoReturn

from registry.errors import Invalid, Refused
from registry.names import AdapterName
from registry.versions.files import WHOLE_MODEL_STEP, is_of_model, refusal_of


def refuse(message: str, next_step: str) -> NoReturn:
    """Raise `Refused` (HUB_UNSUPPORTED)."""
    raise Refused("HUB_UNSUPPORTED", message, next_step=next_step)


def refuse_model_file(path: str) -> None:
    """Raise `Invalid` (FILE_REFUSED) for a file of a whole model."""
    if is_of_model(path):
        raise Invalid.from_finding("FILE_REFUSED", refusal_of(path), next_step=WHOLE_MODEL_STEP)


def refuse_type(kind: str) -> None:
    """Raise `Refused` for a data set, a space or any repository that is not a model."""
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
