"""Parses `KIND=URL` and `KIND=PATH` of the command line into an engine."""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from registry.client.transport.links import accepts_plain_http, is_this_machine
from registry.errors import Invalid
from registry.serving.engines.folder import FolderEngine
from registry.serving.engines.llama_cpp import LlamaCpp
from registry.serving.engines.openai import VLLM, EngineDriver, SGLang

AT_URL: dict[str, Callable[[str, str], EngineDriver]] = {"vllm": VLLM, "sglang": SGLang, "llama.cpp": LlamaCpp}
IN_FOLDER: dict[str, Callable[[Path], EngineDriver]] = {
    "nim": lambda path: FolderEngine(path, current=False),
    "dir": lambda path: FolderEngine(path, current=True),
}
POSSIBLE = ", ".join([*(f"{kind}=URL" for kind in AT_URL), *(f"{kind}=PATH" for kind in IN_FOLDER)])


def engine(text: str, key: str = "") -> EngineDriver:
    """`vllm=http://127.0.0.1:8000`, `nim=/srv/nim`. `Invalid` (SETTING_INVALID) otherwise.

    A key is sent over plain http to this machine only, unless ADAPTER_ENGINE_INSECURE accepts other machines.
    ADAPTER_INSECURE, which is about the registry's token, does not.
    """
    kind, _, location = text.partition("=")
    if location and kind in IN_FOLDER:
        return IN_FOLDER[kind](Path(location).expanduser())
    if kind in AT_URL and urlsplit(location).scheme in ("http", "https") and urlsplit(location).hostname:
        url = urlsplit(location)
        is_safe = url.scheme == "https" or is_this_machine(url.hostname or "")
        if key and not is_safe and not accepts_plain_http("ADAPTER_ENGINE_INSECURE"):
            raise Invalid(
                "SETTING_INVALID",
                f"the engine's key is not sent over plain http to {url.hostname}: anyone on the path could read it",
                next_step="use https, or accept the risk with ADAPTER_ENGINE_INSECURE=1",
            )
        return AT_URL[kind](location, key)
    raise Invalid(
        "SETTING_INVALID",
        f"engine {text[:80]!r} must be KIND=LOCATION, such as vllm=http://127.0.0.1:8000: one of {POSSIBLE}",
    )


def title(text: str) -> str:
    """The name of an engine in reports: its kind, and its port or the last part of its path.

    >>> title("vllm=http://127.0.0.1:8000")
    'vllm-8000'
    """
    kind, _, location = text.partition("=")
    if kind in IN_FOLDER:
        last = "".join(letter for letter in Path(location).name if letter.isascii() and letter.isalnum())
        return f"{kind}-{last[:60]}" if last else kind
    port = urlsplit(location).port
    return f"{kind}-{port}" if port else kind
