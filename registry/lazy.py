"""Imports by name, for what most processes do not need: the module of a command, a router of the embedded registry, an
optional extra.

A path is `package.module:attribute`. `tests/test_lazy_paths.py` resolves every path in the sources.
"""

import pkgutil
from typing import Any

from registry.errors import Invalid

OWN_PACKAGES = ("registry", "cli")


def load(path: str, extra: str = "", user: str = "") -> Any:
    """The attribute that a path names.

    `Invalid` (EXTRA_MISSING) names the extra that `user`, such as a command, needs and that is not installed.
    """
    try:
        return pkgutil.resolve_name(path)
    except ModuleNotFoundError as e:
        missing = (e.name or "").partition(".")[0]
        if not extra or missing in OWN_PACKAGES:
            raise
        raise missing_extra(user, extra, missing) from e


def missing_extra(user: str, extra: str, package: str, otherwise: str = "") -> Invalid:
    """The error for a package that is not installed. `otherwise`: what else a person can do."""
    return Invalid(
        "EXTRA_MISSING",
        f"{user} needs the extra '{extra}' ({package} is not installed)",
        next_step=f"in a checkout, pip install '.[{extra}]'{otherwise}",
    )
