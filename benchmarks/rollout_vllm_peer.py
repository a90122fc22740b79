"""vLLM's side of benchmarks/rollout.py: runs in vLLM's own environment, loads once, then answers for timed rounds.

Questions come by standard input, a JSON object a line: the work first, then {"seed": …} for each round. Answers go to
standard output behind the word ROLLOUT, since vLLM prints there, too.
"""

import json
import os
import sys
import time


def main() -> None:
    work = json.loads(sys.stdin.readline())
    # the engine in this very process: nothing polls while another side has its turn
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB
    os.environ["OMP_NUM_THREADS"] = str(work["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    cores = sorted(os.sched_getaffinity(0))[: work["threads"]]
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", ",".join(map(str, cores)))
    from vllm import LLM, SamplingParams, TokensPrompt

    llm = LLM(work["model"], dtype=work["dtype"], max_num_seqs=work["rows"], max_model_len=work["context"],
              disable_log_stats=True)
    prompts = [TokensPrompt(prompt_token_ids=p) for p in work["prompts"]]
    print("ROLLOUT " + json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        seed = json.loads(line)["seed"]
        # each prompt's length is forced; seeds by row would cost vLLM a sampler of its own for each, so there are none
        params = [SamplingParams(temperature=work["temperature"], max_tokens=n, min_tokens=n, ignore_eos=True,
                                 detokenize=False) for n in work["lengths"]]
        llm.reset_prefix_cache()  # what an earlier round read is forgotten; prompts of this one may share
        began = time.perf_counter()
        outputs = llm.generate(prompts, params, use_tqdm=False)
        took = time.perf_counter() - began
        assert [len(o.outputs[0].token_ids) for o in outputs] == work["lengths"], f"round {seed}"
        print("ROLLOUT " + json.dumps({"seconds": took}), flush=True)


if __name__ == "__main__":
    main()
