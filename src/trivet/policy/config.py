"""Settings of the stages `sft` and `ppo`."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from trivet.config import (
    EMBEDDED,
    Checkpointing,
    Device,
    LoRA,
    Optimizer,
    Part,
    ReportTo,
    StageConfig,
)
from trivet.generate.config import VLLM
from trivet.guard.config import GuardConfig

Estimator = Literal["gae", "rloo", "grpo", "reinforce++"]


class SFTConfig(StageConfig):
    """Supervised fine-tuning on answers; the result is merged into a model folder."""

    input_fields: ClassVar[tuple[str, ...]] = ("data", "model")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", "report_to", "checkpoint", "device.shard", "force", "checkpoint_activations")

    out: Path = Path("runs/sft")
    """Folder of this stage's run."""
    data: Path
    """JSON Lines: `messages` ending with the assistant's turn (all its turns are learned; with
    `"learn": "last"` only the last); or `prompt` + `completion`; or `instruction`, optional `input`, `output`."""
    model: str = EMBEDDED
    """The model to tune."""
    tune: Literal["lora", "full"] = "lora"
    """Adapters (merged into the result at the end), or all weights."""
    lora: LoRA = LoRA()
    """Adapters, where tune is lora."""
    optimizer: Optimizer = Optimizer(lr=2e-4)
    """AdamW's settings (2e-5 suits tune=full)."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the data."""
    max_length: int = Field(1024, ge=8)
    """Tokens of a row at most. A longer conversation is an error."""
    packing: bool = True
    """Fill rows of max_length with several conversations, which do not see each other."""
    batch: int = Field(8, ge=1)
    """Rows a step."""
    micro_batch: int | None = Field(None, ge=1)
    """Rows a pass; fewer need less memory and change nothing else. Default: all of the step."""
    checkpoint_activations: bool = False
    """Keep no activations of a block but its input, and compute them again in the backward pass: less memory, more
    time, the same bits."""
    check: bool = True
    """First see whether the model can answer such prompts at all."""
    force: bool = False
    """Go on even if it can't."""
    checkpoint: Checkpointing = Checkpointing()
    """Saving."""
    device: Device = Device()
    """Where to compute."""
    report_to: ReportTo = []
    """Also log to tensorboard or wandb."""


class PPOSampling(Part):
    """On-policy sampling truncates nothing: no top-p, no top-k, no least length, else the KL is biased."""

    temperature: float = Field(0.7, gt=0, le=10)
    """Of sampling and of every log-probability: policy, old and reference."""
    max_new_tokens: int = Field(64, ge=1)
    """An answer longer than this is cut off."""


class KLConfig(Part):
    """The leash: KL between the policy and the frozen reference."""

    coef: float = Field(0.05, ge=0)
    """Its weight. Rewards have deviation 1 on reference answers, so it keeps its meaning across reward models."""
    where: Literal["reward", "loss"] | None = None
    """In the reward of each token (InstructGPT), or a term of the loss (GRPO). Never both. Default: the reward, with
    advantage grpo the loss."""
    estimator: Literal["k1", "k2", "k3"] | None = None
    """Default: k1 in the reward, k2 in the loss, k3 in that of grpo. k1 in the loss is refused: its gradient has
    expectation zero."""
    adaptive: bool = False
    """Steer the weight so that KL stays near `target` (Ziegler et al. 2019)."""
    target: float = Field(6.0, gt=0)
    """Nats a sequence, where adaptive."""
    horizon: int = Field(2000, ge=1)
    """Episodes over which the weight adapts."""

    @model_validator(mode="after")
    def _goes_together(self) -> KLConfig:
        self._require_place()
        return self

    def _require_place(self) -> None:
        if self.where == "loss" and self.estimator == "k1":
            raise ValueError("k1 in the loss has a gradient of expectation zero; use k2 or k3, or where: reward")
        if self.adaptive and self.where == "loss":
            raise ValueError("the adaptive controller steers KL in the reward; use where: reward")

    def of(self, advantage: str) -> KLConfig:
        """With the place, and in GRPO's loss the estimator, that the paper of `advantage` gives it.

        Raises ValueError where what was set does not go with that place.
        """
        where = self.where or ("loss" if advantage == "grpo" else "reward")
        given: dict[str, str] = {"where": where}
        if advantage == "grpo" and where == "loss":
            given["estimator"] = self.estimator or "k3"
        found = self.model_copy(update=given)
        found._require_place()
        return found

    @property
    def chosen(self) -> Literal["k1", "k2", "k3"]:
        """The estimator, the default resolved."""
        return self.estimator or ("k2" if self.where == "loss" else "k1")


class PTX(Part):
    """PPO-ptx: some of the loss on earlier data in every update, against forgetting (Ouyang et al. 2022)."""

    data: Path | None = None
    """Answers in the forms that `sft` reads, or plain text: a .txt file, or JSON Lines with `text`. Default: none."""
    coef: float = Field(0.1, ge=0)
    """Weight of its mean loss a token beside the policy's; 0: as if there were no data."""
    batch: int = Field(8, ge=1)
    """Rows an optimizer step."""
    max_length: int | None = Field(None, ge=8)
    """Tokens of a row at most. A longer conversation is an error, a longer text is cut into pieces. Default: 512, or
    the model's context where that is less."""


class StopConfig(Part):
    """The run ends with the first criterion met; the log names it (`stop=…`)."""

    steps: int | None = Field(100, ge=1)
    """Steps of rollout and update."""
    episodes: int | None = Field(None, ge=1)
    """Answers sampled."""
    seconds: float | None = Field(None, gt=0)
    """Wall time, interruptions not counted."""
    reward: float | None = None
    """Mean reward on held-out prompts reached (normalised)."""
    kl: float | None = Field(None, gt=0)
    """Budget in nats: the run ends before the update once a rollout's mean KL exceeds it."""
    plateau_patience: int | None = Field(None, ge=1)
    """Evaluations without a better reward on held-out prompts."""
    plateau_delta: float = Field(0.0, ge=0)
    """What counts as better."""

    @model_validator(mode="after")
    def _ends(self) -> StopConfig:
        if self.steps is None and self.episodes is None and self.seconds is None:
            raise ValueError("give steps, episodes or seconds: the other criteria may never be met")
        return self


class EvaluationConfig(Part):
    """Fixed prompts, answered before, during and after; never trained on."""

    prompts: Path | None = None
    """Prompts kept apart. Default: a share of `prompts`, split by first turn."""
    share: float = Field(0.2, gt=0, lt=1)
    """That share."""
    every: int = Field(10, ge=1)
    """Steps between evaluations."""
    samples: int = Field(2, ge=1)
    """Answers a prompt before and after."""
    during: int = Field(1, ge=1)
    """Answers a prompt in between."""
    reward: str | None = None
    """A second reward, such as a model trained on other prompts: only looked at, never trained on. The guard watches
    whether it still rises with the reward, on the fixed prompts and on a share of each rollout."""


def _bare(spec: str) -> str:
    """A reward without its weight: how two settings are known to name the same."""
    return spec.rpartition("*")[2].rstrip("/")


class PPOConfig(StageConfig):
    """Proximal policy optimization against a reward, with KL to the frozen reference."""

    input_fields: ClassVar[tuple[str, ...]] = (
        "prompts", "model", "reward", "ptx.data", "evaluation.prompts", "evaluation.reward", "guard.calibration",
        "guard.ensemble")
    not_in_fingerprint: ClassVar[tuple[str, ...]] = (
        "out", "overwrite", "report_to", "checkpoint", "device.shard", "force",
        "checkpoint_activations", "url",
        "vllm.in_flight", "vllm.timeout", "vllm.retries", "vllm.wait", "vllm.adapters", "vllm.seen_as",
        "vllm.tolerance", "vllm.key")

    out: Path = Path("runs/ppo")
    """Folder of this stage's run."""
    prompts: Path
    """Prompts to train on, JSON Lines."""
    model: str = EMBEDDED
    """The policy's start, and frozen the reference."""
    reward: list[str] = Field(min_length=1)
    """A reward-model folder, package.module:function, a URL; several, as WEIGHT*REWARD, make a weighted sum."""
    tune: Literal["lora", "full"] = "lora"
    """Roles as adapters over one trunk, or each a model of its own."""
    lora: LoRA = LoRA()
    """The policy's adapter, where tune is lora."""
    four_bit: bool = False
    """Hold the frozen trunk in four bits (NF4, as QLoRA does): for a GPU with little memory. Needs tune=lora and
    bitsandbytes."""
    merge: bool = False
    """Also write the policy as a whole model, its adapter merged: a next round samples and starts from it."""
    advantage: Estimator = "gae"
    """How an answer's tokens are credited: gae by a critic; the others have none: rloo and grpo by the prompt's other
    answers (answers: 2 or more), reinforce++ by the whole batch."""
    critic: Literal["head", "separate"] = "head"
    """A head on the policy's pass, or weights of its own (started from the reward model where trunks agree). With
    advantage gae only."""
    optimizer: Optimizer = Optimizer(lr=1e-4, schedule="constant", warmup=0.0)
    """Of policy and critic (1e-6 suits tune=full)."""
    value_lr: float | None = Field(None, gt=0)
    """Learning rate of the value head; default: ten times the policy's."""
    sampling: PPOSampling = PPOSampling()
    """How rollouts are drawn."""
    generate: Literal["torch", "vllm"] = "torch"
    """Who draws them: the policy in this process, or a running vLLM server that is given the policy's weights."""
    url: str | None = None
    """That server's address, such as http://localhost:8000."""
    vllm: VLLM = VLLM()
    """Dealing with that server."""
    rollout: int = Field(32, ge=1)
    """Answers a step."""
    answers: int = Field(1, ge=1)
    """Of them, how many to each prompt."""
    prompt_baseline: bool = False
    """Take from each score the mean score of its prompt's other answers (answers: 2 or more): steadier where scores
    differ more between prompts than between answers. rloo and grpo do so already."""
    epochs: int = Field(2, ge=1)
    """Passes over each rollout."""
    minibatches: int = Field(1, ge=1)
    """Optimizer steps a pass."""
    micro_batch: int = Field(8, ge=1)
    """Answers a forward pass; fewer need less memory and change nothing else."""
    checkpoint_activations: bool = False
    """Keep no activations of a block but its input, and compute them again in the backward pass: less memory, more
    time, the same bits."""
    clip: float = Field(0.2, gt=0)
    """Of the probability ratio."""
    value_clip: float | None = Field(0.2, gt=0)
    """Of new values around the old ones; none: unclipped."""
    value_coef: float = Field(0.1, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(0.0, ge=0)
    """Weight of the entropy bonus."""
    gamma: float = Field(1.0, gt=0, le=1)
    """Discount from token to token (gae, reinforce++)."""
    lam: float = Field(0.95, ge=0, le=1)
    """GAE's λ; the other estimators have none."""
    kl: KLConfig = KLConfig()
    """The leash."""
    ptx: PTX = PTX()
    """Earlier data, not to be forgotten."""
    missing_end_penalty: float = Field(1.0, ge=0)
    """Taken from the score of an answer that was cut off (in deviations of reference scores)."""
    normalise: bool = True
    """Scale rewards so that scores of reference answers have mean 0 and deviation 1, fitted once."""
    stop: StopConfig = StopConfig()
    """When to end."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Fixed prompts to watch."""
    guard: GuardConfig = GuardConfig()
    """Is the reward being gamed?"""
    check: bool = True
    """First see whether the model can answer such prompts at all."""
    force: bool = False
    """Go on even if it can't."""
    checkpoint: Checkpointing = Checkpointing(every=5)
    """Saving."""
    score_tokens: int = Field(4096, ge=64)
    """Tokens a pass of a reward model at most."""
    device: Device = Device()
    """Where to compute."""
    report_to: ReportTo = []
    """Also log to tensorboard or wandb."""

    @model_validator(mode="after")
    def _fits(self) -> PPOConfig:
        if self.four_bit and self.device.shard == "full":
            raise ValueError("device.shard: weights of four bits can't be spread; set none")
        if self.four_bit and self.tune != "lora":
            raise ValueError("four_bit: weights of four bits can't be trained; use tune: lora")
        if self.rollout % self.answers:
            raise ValueError(f"answers: {self.answers} do not divide a rollout of {self.rollout}")
        if self.generate == "vllm" and self.url is None:
            raise ValueError("url: rollouts by vLLM need the address of a running server; give --url http://…")
        if self.generate != "vllm" and self.url is not None:
            raise ValueError("url: only rollouts by vLLM need it; set generate: vllm, or leave it out")
        if self.generate == "vllm" and self.device.shard == "full":
            raise ValueError("device.shard: rank 0 alone hands a server the weights, of which it would hold a share; "
                             "set none")
        if self.prompt_baseline and self.answers < 2:
            raise ValueError("prompt_baseline: needs two answers to each prompt at least; set answers")
        if self.advantage in ("rloo", "grpo"):
            if self.answers < 2:
                raise ValueError(f"answers: advantage {self.advantage} compares answers to one prompt; set 2 or more")
            if self.prompt_baseline:
                raise ValueError(f"prompt_baseline: advantage {self.advantage} already compares with the prompt's "
                                 "other answers; leave it out")
            if self.gamma != 1:
                raise ValueError(f"gamma: to advantage {self.advantage} an answer is one action, with nothing to "
                                 "discount; leave it out")
        if not self.has_critic and (self.critic == "separate" or self.value_lr is not None):
            name = "value_lr" if self.value_lr is not None else "critic"
            raise ValueError(f"{name}: advantage {self.advantage} has no critic; leave it out, or set advantage: gae")
        for name in () if self.has_critic else ("lam", "value_coef", "value_clip"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"{name}: advantage {self.advantage} has no critic; leave it out, or set advantage: "
                                 "gae")
        self.kl = self.kl.of(self.advantage)
        if self.minibatches > self.rollout:
            raise ValueError("minibatches: more of them than answers in a rollout")
        if self.kl.adaptive and self.rollout >= 5 * self.kl.horizon:
            raise ValueError("kl.horizon: must be more than a fifth of the rollout, or the weight could reach 0")
        if self.guard.on:
            self._require_guard()
        return self

    def _require_guard(self) -> None:
        """Raise ValueError for an action that could not be taken, and for an ensemble that says nothing of its own."""
        action, second = self.guard.action, self.evaluation.reward
        if action == "return":
            if second is None:
                raise ValueError("guard.action: return goes to the checkpoint that a held-out reward rates best; set "
                                 "evaluation.reward, or another action")
            if self.second_is_trained_on:
                raise ValueError("evaluation.reward: this is the reward trained on, and guard.action return needs one "
                                 "that is not: it says which checkpoint is best")
        if action == "raise-beta" and self.kl.coef == 0:
            raise ValueError("guard.action: raise-beta multiplies kl.coef, which is 0; give it a weight, or set "
                             "another action")
        members = [_bare(spec) for spec in self.guard.ensemble]
        if len(set(members)) < len(members):
            raise ValueError("guard.ensemble: one member is named twice")
        if set(members) & {_bare(spec) for spec in self.reward}:
            raise ValueError("guard.ensemble: the reward trained on is one of it anyway; name others")
        if members and not self.normalise:
            raise ValueError("guard.ensemble: deviations between rewards need one scale for all; leave normalise on")
        if action == "penalise" and second is not None and _bare(second) in members:
            raise ValueError("evaluation.reward: guard.action penalise would train on it, for it is in guard.ensemble; "
                             "name another one")

    @property
    def second_is_trained_on(self) -> bool:
        """Whether the second reward is among those trained on, and so no held-out one."""
        return self.evaluation.reward is not None and _bare(self.evaluation.reward) in map(_bare, self.reward)

    @property
    def has_critic(self) -> bool:
        """Whether the estimator needs values."""
        return self.advantage == "gae"


class PlanOptions(Part):
    """What `ppo --plan` asks beside the settings of the run."""

    gpus: int = Field(0, ge=0, le=100_000)
    """GPUs among which the answers are shared out. 0: the CPU (or the GPU) of this machine, alone."""
    machine: str = "here"
    """Whose rates: here, measured now in some seconds; or a name in machines.yaml (or in --plan.rates)."""
    rates: Path | None = None
    """A file of measured rates, in place of the machines.yaml that comes along."""
    save_rates: Path | None = None
    """Write what was measured here to this file, for `rates` elsewhere."""
    prompt_tokens: int = Field(64, ge=1, le=10**7)
    """Mean length of a prompt."""
    response_tokens: int | None = Field(None, ge=1, le=10**7)
    """Mean length of an answer. Default: sampling.max_new_tokens, the longest."""
    as_json: bool = False
    """Print JSON in place of tables."""

    @model_validator(mode="after")
    def _goes_together(self) -> PlanOptions:
        if self.machine == "here" and self.rates is not None:
            raise ValueError("rates: name one of its machines with --plan.machine")
        if self.machine != "here" and self.save_rates is not None:
            raise ValueError("save_rates: only what is measured here can be saved; leave --plan.machine out")
        return self


class PlanConfig(PPOConfig):
    """Memory and step time of a `ppo` run with these settings. Nothing is trained, no run folder is made, prompts need
    not exist."""

    prompts: Path | None = None  # type: ignore[assignment]
    """Not read."""
    reward: list[str] = []
    """Reward models count by the size of their files. None: one like the policy is taken for granted."""
    plan: PlanOptions = PlanOptions()
    """The question."""
