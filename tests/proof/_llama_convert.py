"""llama.cpp's own converter in a process: a base and its adapters become GGUF files.

Reads {"source": folder of llama.cpp, "base": folder, "out": folder, "adapters": {case: folder}} on standard input and
prints {case: "" or the converter's last words}, with "" as the base's case.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import runpy
import sys
from pathlib import Path

ORDER = json.load(sys.stdin)
SOURCE, OUT = Path(ORDER["source"]), Path(ORDER["out"])
sys.path[:0] = [str(SOURCE), str(SOURCE / "gguf-py")]

from conversion.base import TextModel


def write_vocabulary(model: TextModel, *_arguments: object, **_fields: object) -> None:
    """Words of no meaning: the converter knows the tokenizers of published models only."""
    words = [f"w{number}" for number in range(model.hparams["vocab_size"])]
    model.gguf_writer.add_tokenizer_model("llama")
    model.gguf_writer.add_token_list(words)
    model.gguf_writer.add_token_scores([0.0] * len(words))
    model.gguf_writer.add_token_types([1] * len(words))


for name in ("_set_vocab_gpt2", "_set_vocab_sentencepiece", "_set_vocab_llama_hf"):
    setattr(TextModel, name, write_vocabulary)
LOG = io.StringIO()
logging.basicConfig(stream=LOG, level=logging.ERROR, force=True)


def run(script: str, *arguments: str) -> str:
    """The last words of a converter that failed."""
    LOG.seek(0)
    LOG.truncate()
    sys.argv = [script, *arguments, "--outtype", "f32"]
    try:
        with contextlib.redirect_stdout(sys.stderr):
            runpy.run_path(str(SOURCE / script), run_name="__main__")
    except SystemExit as e:
        return LOG.getvalue().strip().splitlines()[0][:300] if e.code else ""
    except Exception as e:
        return f"{type(e).__name__}: {str(e)[:300]}"
    return ""


answers = {"": run("convert_hf_to_gguf.py", ORDER["base"], "--outfile", str(OUT / "base.gguf"))}
for case, folder in ORDER["adapters"].items():
    answers[case] = run(
        "convert_lora_to_gguf.py", "--base", ORDER["base"], "--outfile", str(OUT / f"{case}.gguf"), folder
    )
print("\n" + json.dumps(answers))
