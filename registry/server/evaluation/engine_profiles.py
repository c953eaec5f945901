"""Engine profiles: those whose verdicts are stored, from REGISTRY_ENGINES, and those that requests name."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from registry import engines
from registry.errors import Invalid

VARIABLE = "REGISTRY_ENGINES"


@lru_cache(maxsize=8)
def parse_setting(text: str) -> tuple[engines.EngineProfile, ...]:
    """The profiles of the setting, each once. `Invalid` (SETTING_INVALID) names the variable and the wrong part."""
    try:
        by_text = {str(profile): profile for profile in (engines.profile(name) for name in text.split())}
    except Invalid as e:
        raise Invalid(e.code, f"{VARIABLE}: {e.detail}", findings=e.findings, next_step=e.next_step) from e
    return tuple(by_text.values())


def parse_profiles(texts: Iterable[str]) -> list[engines.EngineProfile]:
    """The profiles of a request. `Invalid` (REQUEST_INVALID) for a text that is no profile."""
    try:
        return [engines.profile(text) for text in texts]
    except Invalid as e:
        raise Invalid("REQUEST_INVALID", e.detail, findings=e.findings, next_step=e.next_step) from e


def find_stored_profile(setting: str, text: str) -> str:
    """The profile `text` as its verdicts name it. `Invalid` (REQUEST_INVALID) if this server does not store them."""
    profile = parse_profiles([text])[0]
    stored = parse_setting(setting)
    if profile not in stored:
        raise Invalid(
            "REQUEST_INVALID",
            f"engine: this server stores no verdicts of '{profile}', only of: {', '.join(map(str, stored)) or 'none'}",
            next_step=f"add it to {VARIABLE} of the server and run `adapter recheck-engines`",
        )
    return str(profile)
