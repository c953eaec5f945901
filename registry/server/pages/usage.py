"""Lines for using a version from other programs, filled in: what a reader copies."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from registry.api import PREFIX
from registry.names import AdapterName


@dataclass(frozen=True, slots=True)
class UsageExample:
    """How one program uses an adapter: `title` names the program, `text` is to be copied."""

    title: str
    text: str


def registry_url(request: Request) -> str:
    """Return the URL of this server for clients: from the settings, else as this browser reached it."""
    return str(request.app.state.settings.public_url or request.base_url).rstrip("/")


def usage_examples(request: Request, name: AdapterName, selector: str, base: str) -> list[UsageExample]:
    """Return the lines for an alias (`prod`), a number (`3`) or a digest."""
    url = registry_url(request)
    ref = f"{name}@{selector}" if selector.isdigit() or selector.startswith("sha256:") else f"{name}:{selector}"
    revision = f"v{selector}" if selector.isdigit() else selector
    environment = f"export ADAPTER_REGISTRY={url}\nexport ADAPTER_TOKEN=…"
    hub = f"export HF_ENDPOINT={url}\nexport HF_TOKEN=…"
    return [
        UsageExample("adapter", f"{environment}\nadapter pull {ref} ./{name.name}"),
        UsageExample(
            "vLLM",
            f"{environment}\nexport ADAPTER_PLUGIN_BASE={base}\n"
            f"VLLM_ALLOW_RUNTIME_LORA_UPDATING=1 vllm serve BASE_FOLDER --enable-lora\n"
            f'# request "model": "{ref}"',
        ),
        UsageExample(
            "PEFT",
            f"{hub}\npython - <<'END'\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM\n"
            f'base = AutoModelForCausalLM.from_pretrained("BASE_FOLDER")\n'
            f'model = PeftModel.from_pretrained(base, "{name}", revision="{revision}")\nEND',
        ),
        UsageExample("hf", f"{hub}\nhf download {name} --revision {revision}"),
        UsageExample("curl", f'curl -H "Authorization: Bearer $ADAPTER_TOKEN" {url}{PREFIX}/resolve/{name}/{selector}'),
    ]
