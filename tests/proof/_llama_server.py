"""Runs in llama.cpp's own environment: a server with every adapter. The order comes on stdin, answers go to stdout."""

import json
import sys
import urllib.request

import xllamacpp


def main() -> None:
    order = json.load(sys.stdin)
    params = xllamacpp.CommonParams()
    params.model.path = order["base"]
    params.n_ctx, params.n_parallel, params.port, params.warmup = 128, 1, 0, False
    params.cache_prompt = False
    names = list(order["adapters"])
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(order["adapters"][name], 0.0) for name in names]
    params.lora_init_without_apply = True
    server = xllamacpp.Server(params)
    answers = {}
    for number, name in [(-1, ""), *enumerate(names)]:
        body = {"prompt": order["prompt"], "n_predict": 1, "temperature": 0, "n_probs": 512, "cache_prompt": False,
                "lora": [{"id": number, "scale": 1.0}] if name else []}  # fmt: skip
        request = urllib.request.Request(
            f"{server.listening_address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:
            response_body = json.load(response)
        listed = response_body["completion_probabilities"][0]["top_logprobs"]
        by_id = {row["id"]: row["logprob"] for row in listed}
        answers[name] = [by_id[token] for token in range(512)]
    print("\n" + json.dumps(answers), flush=True)


main()
