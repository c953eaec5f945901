"""The smoke test: one adapter on a loaded base, cheapest checks first (`checks.CHECKS`).

`resident` keeps one model object and hot-swaps plain LoRA adapters into slots. `isolated` tests any adapter in a
process of its own; if both disagree, the isolated run decides. `image` tests adapters of image models.
"""
