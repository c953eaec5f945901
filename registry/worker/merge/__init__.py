"""Merging by arithmetic on files: adapters into one adapter (combine), an adapter into its base (fuse), and back.

    combine.py   adapters → adapter      fuse.py      adapter + base → base
    extract.py   two bases → adapter     resize: `combine.resized`, one adapter at another rank

Invariants
- No model is built: tensors are read by ranges, a module or some rows at a time.
- What is computed from a base's values is computed in a wider type (32 bits for bfloat16, else 64), rounded once.
- Every loss is measured and told; what cannot be merged faithfully is refused with a reason.
"""
