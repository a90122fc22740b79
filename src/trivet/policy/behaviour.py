"""Rollouts that another engine drew: handing it the policy's weights, and what its samples weigh.

After each update the server gets the policy's weights, the adapter alone or, with tune=full, all of them; only then
the next rollout is asked for. No answer is ever drawn by older weights: staleness is 0, and logged.
"""

from __future__ import annotations

import contextlib
import hashlib
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from trivet.artifacts import atomic_folder
from trivet.errors import TrivetError
from trivet.generate.base import Generated
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.generate.vllm_engine import VLLMEngine
from trivet.generate.vllm_server import LOOK_SECONDS, Away, Card, RolloutInterrupted, Server, ServerLost
from trivet.models.source import weights_sha256
from trivet.policy.config import PPOConfig
from trivet.policy.loss import importance_weights, mismatch_kl
from trivet.policy.setup import Setup
from trivet.runs import Run
from trivet.training.ranks import here

PROBES, PROBE_TOKENS = 8, 24
"""Answers by which a server is compared with the trunk, and their greatest length."""
LOOK_AGAIN = 2.0
"""Seconds between two looks for a server that is gone."""


def weigh(advantages: torch.Tensor, logps: torch.Tensor, behaviour_logps: torch.Tensor, mask: torch.Tensor,
          cap: float) -> tuple[torch.Tensor, dict[str, float]]:
    """(advantages times truncated importance weights, figures of the mismatch); tensors [B, R].

    logps: of the training pass over the same weights. Yao et al. 2025; see `importance_weights` and PPO detail 13.
    """
    weights = importance_weights(logps, behaviour_logps, mask, cap)
    return advantages * weights, {
        "mismatch_kl": float(mismatch_kl(logps, behaviour_logps, mask).mean()),
        "mismatch": float((logps - behaviour_logps)[mask].abs().mean()),
        "importance_weight": float(weights[mask].mean()),
        "importance_truncated": float((weights[mask] >= cap).float().mean()),
    }


@contextlib.contextmanager
def rollouts_by_server(config: PPOConfig, setup: Setup, run: Run, stopping: Callable[[], bool]) -> Iterator[None]:
    """Inside the block `setup.remote` draws the rollouts; nothing happens where the policy draws them itself.

    stopping: whether somebody asked to stop, looked at while a server is waited for.
    """
    if config.generate == "torch":
        yield
        return
    assert config.url is not None
    if config.tune == "full":
        require_reloadable(setup)
    setup.remote = RemotePolicy(Server(config.url, config.vllm), config, setup, run, stopping)
    try:
        yield
    finally:
        if here().main:
            setup.remote.close()
        setup.remote = None


def require_server(config: PPOConfig) -> None:
    """Raise TrivetError for a server that is not there, is none, or can't take weights: before models are loaded."""
    if config.generate == "torch":
        return
    assert config.url is not None
    server = Server(config.url, config.vllm)
    try:
        server.card()
        if config.tune == "full":
            server.require_reload()
    except Away as error:
        raise TrivetError(f"the server at {config.url} does not answer ({error})", field="url",
                          mend="start it, or check the address (docs/guides/vllm.md)") from None
    finally:
        server.close()


def require_reloadable(setup: Setup) -> None:
    """Raise TrivetError for a model that vLLM does not reload whole.

    Where the output layer is tied to the embeddings, vLLM 0.32's CPU build goes on with the old output layer (measured
    in tests/roads/test_vllm.py). Its GPU build was not tried, and a server does not say which it is.
    """
    with setup.roles.model("policy") as model:
        tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)
    if tied:
        raise TrivetError(
            f"the output layer of {setup.roles.base.name} is tied to its embeddings: a vLLM server that reloads such a "
            "model keeps the old output layer", field="tune",
            mend="set tune=lora, which hands over an adapter; or generate=torch")


class RemotePolicy:
    """A server that draws for the policy, and which version of its weights it has."""

    def __init__(self, server: Server, config: PPOConfig, setup: Setup, run: Run, stopping: Callable[[], bool]) -> None:
        self.server, self.config, self.setup, self.stopping = server, config, setup, stopping
        self.folder = config.vllm.adapters or run.path("handed")
        # A run's names begin alike, so that what it left behind when it was killed is found and unloaded. None comes
        # twice, not even after a resume: the server keeps what it computed for prompts by the adapter's name.
        self._run = f"trivet-{hashlib.sha256(str(run.folder.resolve()).encode()).hexdigest()[:8]}-"
        self._session = secrets.token_hex(4)
        self.version: int | None = None
        """Updates that the server's weights have seen; None before the first hand-over."""
        self._name = ""
        """What the policy is called in requests."""

    def draw(self, version: int, prompts: Sequence[Sequence[int]], *, n: int,
             seeds: Sequence[int]) -> list[list[Generated]]:
        """n answers to each prompt by the policy as it is now, after `version` updates. Every rank gets them.

        Rank 0 alone deals with the server. Raises TrivetError for a server that does not take the weights or computes
        something else; ServerLost and RolloutInterrupted as `VLLMEngine.generate`.
        """
        drawn: list[list[Generated]] = []
        fault: TrivetError | RolloutInterrupted | None = None
        if here().main:
            try:
                drawn = self.engine(version).generate(prompts, self.setup.sampling, n=n, seeds=seeds)
            except (TrivetError, RolloutInterrupted) as error:
                fault = error
        drawn, kind = here().broadcast((drawn, type(fault).__name__ if fault else None))
        if fault is not None:
            raise fault
        if kind is not None:  # the other ranks stop where rank 0 does; it says why
            raise RolloutInterrupted if kind == "RolloutInterrupted" else ServerLost("rank 0 stops", mend="see there")
        self.version = version
        return drawn

    def engine(self, version: int) -> VLLMEngine:
        """The server as an engine with these weights, handed over where it does not have them yet. See `draw`."""
        if version != self.version:
            try:
                self._give(version)
            except Away as error:
                if self.version is None:  # it never worked: a person is there to see to it
                    raise ServerLost(f"the server at {self.server.url} does not answer ({error})", field="url",
                                     mend="see its log; start it, and run the same command again") from None
                self._wait(str(error), version)
            except KeyboardInterrupt:
                raise RolloutInterrupted from None
        return VLLMEngine(self.server, self._name, self.setup.stops,
                          returned=lambda reason: self._wait(reason, version), resend=self.config.tune != "full")

    def staleness(self, updates: int) -> int:
        """By how many of `updates` the weights are older that drew the last rollout."""
        assert self.version is not None
        return updates - self.version

    def close(self) -> None:
        """Unload the adapter. A server that does not answer is left as it is: the next start tidies up."""
        if self.config.tune == "lora" and self._name:
            with contextlib.suppress(Away, TrivetError):
                self.server.unload_adapter(self._name, seconds=LOOK_SECONDS)
        self._discard(None)
        with contextlib.suppress(OSError):
            self.folder.rmdir()  # unless it holds anything else
        self.server.close()

    # --- handing over ------------------------------------------------------------------------------------

    def _give(self, version: int) -> None:
        """Make the server have this version, under a new name, and check it where anything may have changed."""
        card = self.server.card()
        self._require_room(card)
        # a server that was started anew, or whose adapters were unloaded by somebody else, is looked at again
        known = self.version is not None and (self.config.tune == "full" or self._name in card.adapters)
        if not known:
            self._require_base(card)
        name = f"{self._run}{self._session}-{version}"
        folder = self.folder / name
        if not folder.exists():
            with atomic_folder(folder) as made:
                self.setup.roles.save_policy(made, {"stage": "ppo", "steps": version})
        self._discard(folder)
        seen = f"{self.config.vllm.seen_as.rstrip('/')}/{name}" if self.config.vllm.seen_as else str(folder.resolve())
        if self.config.tune == "full":
            self.server.reload(seen)
            self._name = card.model
        else:
            if name not in card.adapters:
                self.server.load_adapter(name, seen, self.config.lora.r)
            self._name = name
            for other in card.adapters:
                if other.startswith(self._run) and other != name:
                    self.server.unload_adapter(other)
        if not known or self.config.tune == "full":  # a reload may leave something of the old weights behind
            self._compare(card)
        self.version = version

    def _discard(self, but: Path | None) -> None:
        """Remove the folders of earlier versions, and those that a killed process of this run left."""
        for folder in self.folder.glob(f"{self._run}*"):
            if folder != but:
                shutil.rmtree(folder, ignore_errors=True)

    def _wait(self, reason: str, version: int) -> None:
        """Come back when the server does, with this version of the weights.

        Raises ServerLost after `vllm.wait` seconds, RolloutInterrupted when somebody asks to stop, and what `_give`
        raises.
        """
        patience, began = self.config.vllm.wait, time.monotonic()
        print(f"the server at {self.server.url} is gone ({reason}); waiting up to {patience:g} s for it (Ctrl-C stops, "
              "with the state saved)", flush=True)
        self.version = None  # whatever comes back is checked anew
        try:
            while True:
                if self.stopping():
                    raise RolloutInterrupted
                try:
                    self._give(version)
                    print(f"the server is back after {time.monotonic() - began:.0f} s", flush=True)
                    return
                except Away as error:
                    reason = str(error)
                left = began + patience - time.monotonic()
                if left <= 0:
                    raise ServerLost(
                        f"the server at {self.server.url} is gone ({reason}), and did not come back in {patience:g} s",
                        field="url",
                        mend="start it, then run the same command again: the run goes on from its last step")
                _sleep(min(LOOK_AGAIN, left), self.stopping)
        except KeyboardInterrupt:
            raise RolloutInterrupted from None

    # --- is it the same model? ---------------------------------------------------------------------------

    def _require_room(self, card: Card) -> None:
        longest = max(len(self.setup.tokens[p.id]) for p in self.setup.train)
        needed = longest + self.config.sampling.max_new_tokens
        if card.context is not None and needed > card.context:
            raise TrivetError(
                f"the longest prompt has {longest} tokens; with {self.config.sampling.max_new_tokens} new ones that is "
                f"more than the server's {card.context}", field="url",
                mend=f"start the server with --max-model-len {needed} or more, or lower sampling.max-new-tokens")

    def _require_base(self, card: Card) -> None:
        """Raise TrivetError where the server's folder of weights can be seen from here, and they are others."""
        root, base = Path(card.root), self.setup.roles.base
        try:
            found = weights_sha256(root)
        except TrivetError:
            return  # on another machine, or in another form: the comparison of samples tells
        if found != weights_sha256(base.folder):
            raise TrivetError(
                f"the server at {self.server.url} serves other weights ({root}, sha256 {found[:12]}…) than {base.name}",
                field="url", mend=f"start it with --model {base.folder.resolve()}")

    def _compare(self, card: Card) -> None:
        """Raise TrivetError where log-probabilities that the server gives with its answers are not the policy's.

        This finds other weights where their folder can't be seen, and log-probabilities of another temperature.
        """
        tokens, temperature = self.setup.tokens, self.config.sampling.temperature
        prompts = [tokens[p.id] for p in self.setup.train[:PROBES]]
        prompts = [prompts[i % len(prompts)] for i in range(PROBES)]
        drawn = VLLMEngine(self.server, self._name, self.setup.stops, resend=self.config.tune != "full").generate(
            prompts, Sampling(temperature=temperature,
                              max_new_tokens=min(PROBE_TOKENS, self.config.sampling.max_new_tokens)),
            n=1, seeds=list(range(PROBES)))
        answers = [group[0] for group in drawn]
        off = {}
        with self.setup.roles.model("policy") as model:
            engine: TorchEngine = self.setup.engine(model)
            for at in {temperature, 1.0}:
                ours = engine.score(prompts, [a.token_ids for a in answers], at)
                off[at] = _mean_distance([a.logps for a in answers], ours)
        allowed = self.config.vllm.tolerance
        if off[temperature] <= allowed:
            print(f"rollouts by {card.model} at {self.server.url}: log-probabilities {off[temperature]:.3f} nats a "
                  f"token from the policy's here ({sum(len(a.token_ids) for a in answers)} tokens)", flush=True)
            return
        if off[1.0] <= allowed:
            raise TrivetError(
                f"the server at {self.server.url} gives log-probabilities at temperature 1, not at {temperature:g}, at "
                f"which it draws (they are {off[temperature]:.2f} nats a token off)", field="url",
                mend="start it with --logprobs-mode processed_logprobs")
        raise TrivetError(
            f"the server at {self.server.url} serves another model than {self.setup.roles.base.name}, or computes it "
            f"otherwise: log-probabilities are {off[temperature]:.2f} nats a token off, {allowed:g} are allowed",
            field="vllm.tolerance", mend=f"start it with --model {self.setup.roles.base.folder.resolve()} "
            "--logprobs-mode processed_logprobs and without quantization, or allow more with vllm.tolerance")


def _mean_distance(a: list[tuple[float, ...]], b: list[list[float]]) -> float:
    """Mean |difference| over all tokens."""
    pairs = [(x, y) for one, other in zip(a, b, strict=True) for x, y in zip(one, other, strict=True)]
    return sum(abs(x - y) for x, y in pairs) / len(pairs)


def _sleep(seconds: float, stopping: Callable[[], bool]) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0 and not stopping():
        time.sleep(min(0.2, left))

