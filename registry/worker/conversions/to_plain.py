"""PiSSA and OLoRA as a plain LoRA of twice the rank for the unchanged base: PEFT's own conversion.

Both subtract their first factors B0·A0 from the base before training, so the update of the unchanged base is
B·A - B0·A0: the two pairs side by side. The first factors follow from the base's weights (an SVD, a QR): they are
computed again here, and PEFT subtracts them (`save_pretrained(path_initial_model_for_weight_conversion=…)`).
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from registry.client.local.adapter_folder import read_adapter
from registry.merging.conversions import Converted
from registry.versions.files import CARD, CONFIG
from registry.worker.conversions import to_canonical
from registry.worker.conversions.request import ConversionRequest, serve


def convert(request: ConversionRequest) -> Converted:
    """Write the adapter as a plain LoRA. Loads the base twice, in 32 bits."""
    folder, out = read_adapter(Path(request.source)), Path(request.out)
    spec = folder.peft.lora
    initialization = spec.config.initialization
    with tempfile.TemporaryDirectory(prefix="adapter-start-") as start:
        config = LoraConfig.from_pretrained(request.source)
        config.inference_mode = False
        untrained = get_peft_model(_base(request), config)
        untrained.peft_config["default"].init_lora_weights = True
        untrained.save_pretrained(start)
        del untrained
        trained = PeftModel.from_pretrained(_base(request), request.source)
        trained.peft_config["default"].init_lora_weights = initialization
        trained.save_pretrained(out, path_initial_model_for_weight_conversion=start)
    (out / CARD).unlink(missing_ok=True)  # PEFT writes an empty card
    config_document = json.loads((out / CONFIG).read_bytes())
    config_document["base_model_name_or_path"] = spec.base_name or request.base.name
    (out / CONFIG).write_text(json.dumps(config_document, indent=2, sort_keys=True) + "\n", "utf-8")
    to_canonical.copy_others(folder, out)
    result = read_adapter(out).peft.lora
    return Converted(
        message=f"{initialization} undone: {len(result.modules)} modules of rank {result.rank} for the unchanged base",
        modules=len(result.modules), rank=result.rank, tensors=2 * len(result.modules),
        notes=(f"the first factors were computed again from the weights of {request.base.name}",),
    )  # fmt: skip


def _base(request: ConversionRequest) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        request.base_folder, dtype=torch.float32, local_files_only=True, trust_remote_code=False
    )


if __name__ == "__main__":
    serve(convert)
