"""What the base says to a customer, and what it says with each adapter: `python -m demo.answers BASE NAME=DIR …`.

Prints one JSON object: the question, the base's answer, and each adapter's.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import peft
import torch
import transformers

from tests.fixtures.real_adapters import PROBES, say


def main(base: str, named: list[str]) -> None:
    warnings.filterwarnings("ignore")
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
    question = PROBES[0]
    answers = {"": say(model, tokenizer, question)}
    wrapped = None
    for name, folder in (text.split("=", 1) for text in named):
        slot = name.replace("/", "-")
        if wrapped is None:
            wrapped = peft.PeftModel.from_pretrained(model, str(Path(folder)), adapter_name=slot)
        else:
            wrapped.load_adapter(folder, slot)
        wrapped.set_adapter(slot)
        answers[name] = say(wrapped.eval(), tokenizer, question)
    print(json.dumps({"question": question, "answers": answers}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
