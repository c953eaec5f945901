"""What an adapter's configuration says its base is called: a claim to compare, never a path to open.

A Hub name (`org/model`, `model`) is kept as written. A trainer's local folder keeps only its last part, so no user name
is shown or stored. What climbs (`../`), names a system folder, a share or a URL, or hides characters is refused.
"""

from __future__ import annotations

import re
from typing import Any

from registry.evaluation.verdicts import Finding
from registry.model import FrozenModel

LENGTH_LIMIT = 512

_HUB_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}(/[A-Za-z0-9][A-Za-z0-9._-]{0,127})?\Z")
_CACHE_FOLDER = re.compile(r"models--([A-Za-z0-9._-]+?)--([A-Za-z0-9._-]+)\Z")
_SYSTEM_FOLDERS = frozenset(["bin", "boot", "dev", "etc", "lib", "lib64", "proc", "run", "sbin", "sys", "usr"])


class BaseClaim(FrozenModel):
    """The claimed name; empty when none is written. `is_local` if it was a folder of the trainer's machine."""

    name: str = ""
    is_local: bool = False

    def findings(self, file: str) -> list[Finding]:
        location = f"{file}: base_model_name_or_path"
        if not self.name:
            message = "the configuration does not name the base that the adapter was trained on"
            return [Finding.of("warning", "config.base_model_absent", location, message)]
        if self.is_local:
            message = f"the base is named by a folder of the trainer's machine that ends in {self.name!r}"
            return [Finding.of("warning", "config.base_model_local", location, message)]
        return []

    def names(self, base: str) -> bool:
        """Whether the claim and this base's name may mean the same: equal, or equal in their last part."""
        return bool(self.name) and self.name.split("/")[-1].lower() == base.split("/")[-1].lower()


def read_claim(value: Any) -> tuple[BaseClaim, list[str]]:
    """The claim in this value, and the rules that it breaks, in words."""
    if value is None or value == "":
        return BaseClaim(), []
    problem = _problem(value)
    if problem:
        return BaseClaim(), [problem]
    text = str(value).strip()
    if _HUB_NAME.match(text):
        return BaseClaim(name=text), []
    parts = [p for p in re.split(r"[\\/]", text) if p not in ("", ".", "~")]
    for part in parts:
        cached = _CACHE_FOLDER.match(part)
        if cached:
            return BaseClaim(name=f"{cached[1]}/{cached[2]}", is_local=True), []
    last = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1] if parts else "").strip("-.")
    return BaseClaim(name=last[:128], is_local=True), []


def _problem(value: Any) -> str:
    if not isinstance(value, str):
        return f"must be text, not {type(value).__name__}"
    if len(value) > LENGTH_LIMIT:
        return f"has {len(value)} characters; the limit is {LENGTH_LIMIT}"
    odd = next((c for c in value if not " " <= c <= "~"), "")
    if odd:
        return f"holds U+{ord(odd):04X}, which is not a printable ASCII character"
    if "://" in value or value.startswith(("\\\\", "//")) or value.lower().startswith(("file:", "data:")):
        return "is a URL or a network share, not the name of a base"
    parts = re.split(r"[\\/]", value)
    if ".." in parts:
        return "climbs out of its folder with '..'"
    if value.startswith("/") and len(parts) > 1 and parts[1] in _SYSTEM_FOLDERS:
        return "is a path into a system folder"
    return ""
