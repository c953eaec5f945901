"""The smoke test: one adapter on a loaded base, cheapest checks first.

    weights     every number in the file is finite; the norm of each module's update beside that of the base's weight
    load        PEFT loads it
    forward     the probes' logits are finite
    effect      they differ from the base's
    drift       perplexity and KL on neutral text stay within the thresholds
    golden      expected answers become more likely
    dialogue    its chat template renders, its tokens are in range
    swap        the base and the previous adapter answer as before; in a mixed batch it answers as in its own
    base        after unloading, the base's numbers are bit-equal to before

`resident` keeps one model object and hot-swaps plain LoRA adapters into slots. `isolated` tests any adapter in a
process of its own; if both disagree, the isolated run decides.
"""
