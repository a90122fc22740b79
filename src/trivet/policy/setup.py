"""Before the first step of `ppo`: prompts, roles and rewards, and the plan line that says what stands where."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trivet.artifacts import Prompt, first_turn, is_held_out, read_rows
from trivet.data.chat import context_length, ensure_template, prompt_ids, require_room, stop_token_ids
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.generate.torch_engine import TorchEngine
from trivet.judge.base import Reward, Sample
from trivet.judge.rewards import WeightedReward, call, make_reward, parse_terms
from trivet.judge.scorer import ModelReward, load_model_reward, with_calibration
from trivet.models.checkpointing import checkpoint_blocks
from trivet.models.lora import stands_on
from trivet.models.reward_model import reward_on_trunk
from trivet.models.roles import Roles, SeparateModels, SharedTrunk, megabytes
from trivet.models.source import ModelSource, load_tokenizer, resolve, weights_sha256
from trivet.policy.config import PPOConfig
from trivet.policy.ptx import EarlierData, earlier_data
from trivet.policy.state import RewardScale
from trivet.training import shard
from trivet.training.device import Compute
from trivet.training.ranks import here

if TYPE_CHECKING:
    from trivet.policy.behaviour import RemotePolicy


@dataclass(frozen=True)
class Member:
    """One of an ensemble: its reward, and its scale where that is known before the first rollout."""

    reward: WeightedReward
    scale: RewardScale | None


def member_name(k: int) -> str:
    """What messages call the k-th of the ensemble, counted from 1."""
    return f"guard.ensemble's member {k}"


@dataclass
class Setup:
    """What the loop works with."""

    roles: Roles
    tokenizer: Any
    stops: frozenset[int]
    sampling: Sampling
    train: list[Prompt]
    heldout: list[Prompt]
    tokens: dict[str, list[int]]
    """Token ids of each prompt, by its id."""
    reward: WeightedReward
    second: Reward | None
    """Only looked at, never trained on: `evaluation.reward`."""
    ensemble: list[Member]
    """Further reward models, beside the one that is trained on."""
    earlier: EarlierData | None
    """What is not to be forgotten (PPO-ptx)."""
    scale: RewardScale | None
    """Fixed by the reward model's calibration, or None: the first rollout fits it."""
    compute: Compute
    spread: bool = False
    """Whether the roles' models are spread over several processes (FSDP2)."""
    remote: RemotePolicy | None = None
    """Draws the rollouts in the policy's place, where a server does (policy/behaviour.py)."""

    def scores(self, reward: Reward, samples: Sequence[Sample], name: str) -> list[float]:
        """Scores of a reward, checked. It may stand on the policy's trunk, and of that each rank makes as many passes
        as its share needs: where the trunk is spread, it is whole meanwhile."""
        models = list(self.roles.models().values()) if self.spread else []
        with shard.whole(*models if len(models) == 1 else ()):
            return call(reward, samples, name)

    def engine(self, model: Any, progress: Callable[[int], None] | None = None) -> TorchEngine:
        """The in-process engine on whatever role `model` acts as."""
        return TorchEngine(model, self.tokenizer.pad_token_id, self.stops, batch_size=64, progress=progress,
                           tokenizer=self.tokenizer)


def split_prompts(config: PPOConfig) -> tuple[list[Prompt], list[Prompt]]:
    """(train, held out), which share no first turn.

    Raises TrivetError where they would, or where a side is empty.
    """
    prompts = read_rows(config.prompts, Prompt)
    if config.evaluation.prompts is not None:
        heldout = read_rows(config.evaluation.prompts, Prompt)
        turns = {first_turn(p.messages).strip() for p in heldout}
        shared = [p.id for p in prompts if first_turn(p.messages).strip() in turns]
        if shared:
            raise TrivetError(
                f"{len(shared)} training prompts are among the evaluation prompts (the first: {shared[0]!r})",
                file=config.evaluation.prompts, field="evaluation.prompts",
                mend="keep them apart, or leave this setting out: a share of the prompts is then set aside")
        known = {p.id for p in prompts}
        if twice := [p.id for p in heldout if p.id in known]:
            raise TrivetError(f"the id {twice[0]!r} stands for a training prompt, too",
                              file=config.evaluation.prompts, field="id",
                              mend="give each prompt of the two files an id of its own")
        return prompts, heldout
    held = [is_held_out(p.messages, config.evaluation.share, config.seed) for p in prompts]
    train = [p for p, h in zip(prompts, held, strict=True) if not h]
    heldout = [p for p, h in zip(prompts, held, strict=True) if h]
    if not train or not heldout:
        raise TrivetError(f"{len(prompts)} prompts are too few to set a share aside for evaluation",
                          file=config.prompts, field="evaluation.share",
                          mend="give more prompts, or --evaluation.prompts FILE")
    return train, heldout


def prepare_models(config: PPOConfig, compute: Compute, count: Callable[[str, int], None]) -> Setup:
    """Load roles and rewards. Reward models that stand on the policy's trunk become adapters on it.

    Raises TrivetError for prompts longer than the context and for rewards that do not load.
    """
    train, heldout = split_prompts(config)
    source = resolve(config.model)
    tokenizer = load_tokenizer(source)
    if ensure_template(tokenizer):
        print("the model has no chat template; a plain User:/Assistant: one is used")
    terms = parse_terms(config.reward)
    second_terms = parse_terms([config.evaluation.reward]) if config.evaluation.reward else []
    ensemble_terms = [parse_terms([spec]) for spec in config.guard.ensemble] if config.guard.on else []
    trained = [t.spec for t in terms if t.kind == "model"]
    before = {t.spec for t in (*terms, *second_terms)}
    shared = _sharing(config, source, [t.spec for t in (*terms, *second_terms, *itertools.chain(*ensemble_terms))
                                       if t.kind == "model"])
    roles: Roles
    spread = shard.wanted(config.device, compute.device) and config.generate == "torch" and not config.four_bit
    critic = config.critic if config.has_critic else None
    if config.tune == "lora":
        if source.is_adapter:
            raise TrivetError("the policy must start from a whole model, not an adapter", field="model",
                              file=source.folder, mend="tune=full merges it first, or name its base")
        roles = SharedTrunk(source, compute.trunk, compute.device, config.lora, critic=critic, four_bit=config.four_bit,
                            rewards={role: s.folder for spec, (role, s) in shared.items() if spec in before},
                            watching={role: s.folder for spec, (role, s) in shared.items() if spec not in before},
                            critic_from=next((shared[t][0] for t in trained if t in shared), None))
    else:
        # weights that are spread are trained as they are: no second copy to compute with
        roles = SeparateModels(source, torch.float32 if spread else compute.trunk, compute.device, critic=critic)
        if spread and compute.trunk != torch.float32:
            print(f"note: passes over sharded weights compute in float32, not in {str(compute.trunk)[6:]}: trained "
                  "weights are float32, and no second copy of sharded ones is kept (--device.shard none keeps one on "
                  "each rank)")
    if config.checkpoint_activations:
        for model in roles.models().values():
            checkpoint_blocks(model)
    models: dict[str, ModelReward] = {}

    def model_reward(spec: str) -> ModelReward:
        if spec not in models:
            if spec in shared:
                role, found = shared[spec]
                models[spec] = with_calibration(reward_on_trunk(roles, role, found, compute.device), count,
                                                config.score_tokens)
            else:
                models[spec] = load_model_reward(spec, compute.trunk, compute.device, count,
                                                 config.score_tokens)
        return models[spec]

    reward = make_reward(terms, model_reward)
    second = make_reward(second_terms, model_reward) if second_terms else None
    ensemble = [Member(member := make_reward(t, model_reward), _known_scale(config, member, source))
                for t in ensemble_terms]
    if config.critic == "separate" and config.tune == "lora" and trained and trained[0] in shared:
        _start_critic(roles, models[trained[0]], config)
    for line in roles.plan():
        print(line)
    spread = spread and _spread(roles, compute.device)
    for spec, loaded in models.items():
        if spec not in shared:
            print(f"  reward {spec}: loaded apart, {loaded.model.parameters * 4 / 1e6:.0f} MB at most")
    with roles.model("policy") as model:
        stops, context = stop_token_ids(model, tokenizer), context_length(model)
    everything = [*train, *heldout]
    tokens = {p.id: prompt_ids(tokenizer, p.messages) for p in everything}
    require_room([len(tokens[p.id]) for p in everything], config.sampling.max_new_tokens, context,
                 file=config.prompts, ids=[p.id for p in everything])
    return Setup(roles, tokenizer, stops, Sampling(**config.sampling.model_dump()), train, heldout, tokens,
                 reward, second, ensemble, earlier_data(config, tokenizer, context, compute.device),
                 _known_scale(config, reward, source), compute, spread)


def _spread(roles: Roles, device: str) -> bool:
    """Spread the roles' models over the ranks and say what each holds. False where a model can't be spread."""
    for role, model in roles.models().items():
        before = megabytes(model.parameters())
        if not shard.shard(model, device):
            print(f"note: {role} keeps its blocks in no list: each process holds it whole")
            return False
        kept = megabytes(shard.local_part(p) for p in model.parameters())
        print(f"  {role}: spread over {here().world} processes (FSDP2), {kept:.0f} of {before:.0f} MB in each "
              "(embeddings, output layer and adapters stand in all)")
    return True


def _sharing(config: PPOConfig, base: ModelSource, specs: list[str]) -> dict[str, tuple[str, ModelSource]]:
    """Which reward models can be adapters on the policy's trunk: {spec: (role, source)}."""
    found: dict[str, tuple[str, ModelSource]] = {}
    if config.tune != "lora" or base.is_adapter:
        return found
    for spec in dict.fromkeys(specs):
        source = resolve(spec)
        if source.is_adapter and stands_on(source.folder, base):
            found[spec] = ("reward" if not found else f"reward{len(found) + 1}", source)
    return found


def _known_scale(config: PPOConfig, reward: WeightedReward, base: ModelSource) -> RewardScale | None:
    """The scale that is known before the first rollout: a single calibrated reward model's is already applied.

    A trunk in four bits is another reference than the one it was calibrated on.
    """
    if not config.normalise:
        return RewardScale()
    if len(reward.parts) == 1 and isinstance(only := reward.parts[0][1], ModelReward) and only.calibration:
        if config.four_bit:
            print("note: the reward model was calibrated in full precision, this run's trunk has four bits; rewards "
                  "are scaled by the first rollout instead")
            return None
        facts = only.facts
        if facts.get("reference_sha256") == weights_sha256(base.folder) \
                and (facts.get("sampling") or {}).get("temperature") == config.sampling.temperature:
            return RewardScale(0.0, reward.parts[0][0].weight, "calibration")
        print("note: the reward model was calibrated on another reference or temperature; rewards are scaled "
              "by the first rollout instead")
    return None


def _start_critic(roles: Roles, reward: ModelReward, config: PPOConfig) -> None:
    """A critic that starts from the reward model says at first what it says, in the reward's own scale (detail 8).

    Its head stays zero where that would be wrong: a reward model that reads the mean over an answer says nothing of
    one token, and with a prompt baseline the return is not the score; on a trunk in four bits the first rollout
    sets the scale.
    """
    if config.four_bit or config.prompt_baseline or reward.model.pool != "last":
        return
    assert roles.value_head is not None
    calibration = reward.calibration
    mean, std = (calibration.mean, calibration.std) if calibration else (0.0, 1.0)
    weight: Any = reward.model.head.weight
    roles.value_head.weight.data.copy_(weight / std)
    roles.value_head.bias.data.fill_(-mean / std)
