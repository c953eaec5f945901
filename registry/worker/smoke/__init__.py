"""The smoke test: one adapter on a loaded base, in order of cost, from its values to golden answers and swapping.

    values      every number of the file is finite; how large each module's update is, beside the base's weight
    load        PEFT takes it
    forward     logits of the probes are finite
    effect      they differ from the base's
    drift       perplexity and KL on neutral text stay within the thresholds
    golden      expected answers become likelier
    dialogue    its chat template renders, its tokens are in range
    swap        its neighbour and the base answer as before while it is there; it answers in a mixed batch as alone
    base        after the adapter is gone, the base's numbers are bit-equal to before

Two ways lead through it: `resident` keeps one model object and hot-swaps plain LoRA adapters into slots; `alone` puts
any adapter on a base in a process that is thrown away afterwards, and what it says counts wherever both disagree.
"""
