"""llama.cpp's own HTTP server on a GGUF file, out of the wheel xllamacpp: the peer of benchmarks/serving.py.

    python benchmarks/llama_server_peer.py FILE.gguf --parallel 32 --threads 2 --room 16384

prints the address it listens on, and serves until it is ended.
"""

from __future__ import annotations

import argparse
import time

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file")
    parser.add_argument("--parallel", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--room", type=int, default=16_384)
    chosen = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = chosen.file
    params.n_ctx, params.n_parallel = chosen.room, chosen.parallel
    params.kv_unified = True
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = chosen.threads
    params.hostnames, params.port = ["127.0.0.1"], 0
    server = xllamacpp.Server(params)
    print(f"serving {server.listening_address}", flush=True)
    while True:
        time.sleep(3600)


if __name__ == "__main__":
    main()
