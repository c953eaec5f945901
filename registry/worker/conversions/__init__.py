"""Conversions that need values: each in a process of its own, which knows folders and no registry.

    runner.py      the job: pull, judge once more, run the process, push the result
    order.py       what the process is told, and the running of it (no torch)
    canonical.py   the scale into B         plain.py     PiSSA and OLoRA on their base, by PEFT
    native.py      torchtune and mlx        images.py    diffusers' own converters
    to_gguf.py     llama.cpp's names and row order, by the library gguf

Invariants
- Values are computed in 32 bits at least; a result that the file's dtype cannot hold exactly is stored in 32 bits.
- What a library's converter made is counted and measured against the source; a loss is a refusal, never a log line.
"""
