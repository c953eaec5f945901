"""Runs in llama.cpp's own environment: a server with adapters, until its stdin ends. Its address goes to stdout."""

import json
import sys

import xllamacpp


def main() -> None:
    order = json.loads(sys.stdin.readline())
    params = xllamacpp.CommonParams()
    params.model.path = order["base"]
    params.n_ctx, params.n_parallel, params.port, params.warmup = 128, 1, 0, False
    params.cache_prompt = False
    params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(path, 0.0) for path in order["adapters"]]
    params.lora_init_without_apply = True
    server = xllamacpp.Server(params)
    print("\n" + json.dumps({"url": server.listening_address}), flush=True)
    sys.stdin.read()
    server.stop()


main()
