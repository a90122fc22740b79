"""A vLLM server of its own for a test or a benchmark: started, waited for, ended; on 127.0.0.1 alone."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

PATIENCE = 300.0
"""Seconds until a server has to answer: 40 on two quiet cores."""
FOR_ROLLOUTS = ("--enable-lora", "--logprobs-mode", "processed_logprobs")


class VLLMServer:
    """A process that serves `model`; `url` stays the same when it is killed and started again."""

    def __init__(self, python: Path, model: Path, log: Path, *options: str, dtype: str = "bfloat16",
                 context: int = 512, cores: Sequence[int] | None = None, reload: bool = False) -> None:
        """python: of the environment that has vLLM. cores: those it may use; default: this process's.

        reload: whether all weights may be replaced while it runs.
        """
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        self._command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port",
                         str(self.port), "--model", str(model), "--dtype", dtype, "--max-model-len", str(context),
                         "--enforce-eager", *options]
        chosen = cores or sorted(os.sched_getaffinity(0))
        self._environment = os.environ | {
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, chosen)), "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_SERVER_DEV_MODE": str(int(reload)),
            "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
        self._environment.pop("PYTHONPATH", None)  # what Trivet is run from is not the server's
        self._environment.pop("OMP_NUM_THREADS", None)  # it counts its cores itself
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and return when it answers. Raises RuntimeError with the end of its log where it never does."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, env=self._environment, stdout=log, stderr=log,
                                             start_new_session=True)
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and self._process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.url}/health", timeout=2).status_code == 200:
                    return
            time.sleep(0.5)
        self.stop()
        raise RuntimeError("vLLM did not start:\n" + self.log.read_text(errors="replace")[-3000:])

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it and the processes that it started; SIGKILL is a sudden death."""
        if self._process is None:
            return
        process, self._process = self._process, None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):  # killed below
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # its engine, too, which a killed server leaves behind
        process.wait()


@contextlib.contextmanager
def vllm_server(python: Path, model: Path, log: Path, *options: str, dtype: str = "bfloat16", context: int = 512,
                cores: Sequence[int] | None = None, reload: bool = False) -> Iterator[VLLMServer]:
    """A running server; see VLLMServer."""
    server = VLLMServer(python, model, log, *options, dtype=dtype, context=context, cores=cores, reload=reload)
    server.start()
    try:
        yield server
    finally:
        server.stop()
