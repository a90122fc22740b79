"""Policy, reference, critic and reward behind one interface: callers name roles, never adapters.

`SharedTrunk`: one frozen set of weights; the policy is its LoRA adapter, the reference the trunk with
adapters off, the critic a head on the policy's pass or an adapter of its own, the reward model another
adapter where it stands on the same weights. `SeparateModels`: every role a model of its own.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import nn

from trivet.config import LoRA
from trivet.models import lora
from trivet.models.lora_linear import fuse
from trivet.models.lower import LowerBlocks, shareable_blocks
from trivet.models.masters import Masters
from trivet.models.output_layer import plain_output_layer
from trivet.models.packed import bears_packing
from trivet.models.source import ModelSource, load_causal_lm

Role = str
"""policy, reference, critic, or the name under which a reward model's adapter was loaded."""


class Roles(Protocol):
    """What PPO needs of its models."""

    base: ModelSource
    """What the policy started from, and the reference is."""
    value_head: nn.Linear | None
    """None where there is no critic."""
    has_critic: bool
    """True where the critic has weights of its own; False where it is a head on the policy's pass, or there is none."""

    def model(self, role: Role, lower: LowerBlocks | None = None) -> contextlib.AbstractContextManager[Any]:
        """The causal model that acts as `role` inside the block.

        lower: of this batch, from `lower_blocks`; policy, reference and critic share what it keeps.
        """

    def lower_blocks(self) -> LowerBlocks | None:
        """A new, empty keeper for one batch; None where the roles share no blocks."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """Parameters of policy and critic, by name; float32, the only ones an optimizer sees."""

    def refresh(self) -> None:
        """To be called after the trainable weights changed: what computes with copies of them takes them over."""

    def models(self) -> dict[Role, Any]:
        """The models that roles stand on, each once; one for all where they share a trunk."""

    def save_policy(self, folder: Path, facts: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
        """The policy as an artifact: an adapter folder, or a model folder.

        state: the weights of a model that is spread over several processes, put together.
        """

    def plan(self) -> list[str]:
        """Lines that say which role stands where, with the memory of each."""


def value_head(hidden_size: int, device: str) -> nn.Linear:
    """A float32 head that says 0 for every state at first (detail 9)."""
    head = nn.Linear(hidden_size, 1, dtype=torch.float32, device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def head_parameters(head: nn.Linear | None) -> dict[str, nn.Parameter]:
    """The value head's parameters by their names among the trainable ones; none without a critic."""
    return {} if head is None else {f"value_head.{n}": p for n, p in head.named_parameters()}


def hidden_size(model: Any) -> int:
    return int(model.config.get_text_config().hidden_size)


def no_dropout(model: nn.Module) -> None:
    """Dropout off for good (detail 5): training and evaluation passes must be the same function."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attention_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop", "hidden_dropout"):
        if hasattr(getattr(model, "config", None), name):
            setattr(model.config, name, 0.0)
    for module in model.modules():
        if isinstance(getattr(module, "attention_dropout", None), float):
            module.attention_dropout = 0.0  # type: ignore[assignment]


def megabytes(parameters: Any) -> float:
    """Memory of tensors, in MB."""
    return sum(p.numel() * p.element_size() for p in parameters) / 1e6


def weights_hash(tensors: dict[str, torch.Tensor]) -> str:
    """One sha256 over named tensors: for tests and for saying that frozen weights did not move."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        data = tensors[name].detach().cpu().contiguous()
        digest.update(name.encode() + data.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


class SharedTrunk:
    """Roles as LoRA adapters over one frozen trunk."""

    def __init__(
        self, base: ModelSource, dtype: torch.dtype, device: str, config: LoRA, *,
        critic: Literal["head", "separate"] | None = "head", rewards: Mapping[str, Path] | None = None,
        critic_from: Role | None = None, four_bit: bool = False, watching: Mapping[str, Path] | None = None,
    ) -> None:
        """critic 'separate': an adapter of its own, started from that of the reward model `critic_from`, if any;
        None: there is none, and no value head.

        four_bit: hold the trunk in four bits; it computes in `dtype`.
        rewards: adapter folders of reward models that stand on the same weights (see `lora.stands_on`), by
        the role each gets. watching: others that only look on; loaded last, so that what is trained begins as it would
        without them.
        """
        rewards = rewards or {}
        from peft import get_peft_model

        self.base = base
        trunk = load_causal_lm(base, dtype, device, four_bit=four_bit)
        no_dropout(trunk)
        plain_output_layer(trunk)  # found out now, not inside a pass
        self._packs = bears_packing(trunk)
        adapter = lora.lora_config(trunk, config, "CAUSAL_LM")
        self._peft = get_peft_model(trunk, copy.deepcopy(adapter), adapter_name="policy")
        self.has_critic = critic == "separate"
        self.value_head = value_head(hidden_size(trunk), device) if critic else None
        for role, folder in rewards.items():
            lora.load_into(self._peft, folder, role)
        if self.has_critic:
            if critic_from is not None:
                lora.load_into(self._peft, rewards[critic_from], "critic")
            else:
                self._peft.add_adapter("critic", adapter)
        for role, folder in (watching or {}).items():
            lora.load_into(self._peft, folder, role)
        fuse(self._peft)
        learned = {"policy", "critic"}
        self._adapter_parameters: list[tuple[str, nn.Parameter, bool]] = []
        for name, parameter in self._peft.named_parameters():
            if "lora_" in name:
                adapter = name.split(".")[-2]
                self._adapter_parameters.append((name, parameter, adapter in learned))
                parameter.data = parameter.data.float()
        apart = {"policy", "critic"} if self.has_critic else {"policy"}
        self._activate("policy")
        self._shared = shareable_blocks(
            self._peft.get_base_model(), lambda name, _: "lora_" in name and name.split(".")[-2] in apart)

    def _activate(self, adapter: str) -> None:
        if self._peft.active_adapter != adapter:
            self._peft.set_adapter(adapter)
        # PEFT lets only the active adapter learn; the policy and a critic adapter learn side by side here
        for _, parameter, learns in self._adapter_parameters:
            parameter.requires_grad_(learns)

    @contextlib.contextmanager
    def model(self, role: Role, lower: LowerBlocks | None = None) -> Iterator[Any]:
        """See Roles.model."""
        model = self._peft.get_base_model()
        with lower.on(model) if lower is not None else contextlib.nullcontext():
            if role == "reference":
                with self._peft.disable_adapter():
                    yield model
                self._activate("policy")
                return
            self._activate(role if role != "critic" or self.has_critic else "policy")
            try:
                yield model
            finally:
                self._activate("policy")

    def lower_blocks(self) -> LowerBlocks | None:
        """See Roles.lower_blocks."""
        return LowerBlocks(self._shared) if self._shared else None

    def trainable(self) -> dict[str, nn.Parameter]:
        """See Roles.trainable."""
        found = {name: p for name, p, learns in self._adapter_parameters if learns}
        return found | head_parameters(self.value_head)

    def frozen(self) -> dict[str, torch.Tensor]:
        """Weights that must never move: the trunk and a reward model's adapter."""
        learned = {id(p) for p in self.trainable().values()}
        return {n: p for n, p in self._peft.named_parameters() if id(p) not in learned}

    def refresh(self) -> None:
        """See Roles.refresh: adapters compute with themselves."""

    def models(self) -> dict[Role, Any]:
        """See Roles.models."""
        return {"trunk": self._peft.get_base_model()}

    def save_policy(self, folder: Path, facts: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
        """See Roles.save_policy."""
        lora.save_adapter(self._peft, "policy", folder, self.base, {"role": "policy", **facts})

    def plan(self) -> list[str]:
        """See Roles.plan."""
        trunk = megabytes(p for n, p in self._peft.named_parameters() if "lora_" not in n)
        shared = ["reference (adapters off)", *self._peft.peft_config]
        lines = [f"one trunk {self.base.name}: {trunk:.0f} MB, shared by {', '.join(shared)}"]
        for adapter in self._peft.peft_config:
            size = megabytes(p for n, p, _ in self._adapter_parameters if n.split(".")[-2] == adapter)
            lines.append(f"  {adapter}: adapter, {size:.1f} MB")
        if not self.has_critic:
            lines.append("  critic: none" if self.value_head is None else "  critic: a head on the policy's pass")
        if not self._packs:
            lines.append("  passes are padded: this model's attention does not bear packed rows")
        return lines


class SeparateModels:
    """Roles as models of their own: full fine-tuning. Trained weights are float32.

    In bfloat16 passes and rollouts compute with copies of them (`masters.py`).
    """

    def __init__(
        self, base: ModelSource, dtype: torch.dtype, device: str, *,
        critic: Literal["head", "separate"] | None = "head",
    ) -> None:
        """dtype: in which all roles compute."""
        self.base = base
        self._models: dict[str, Any] = {"policy": load_causal_lm(base, torch.float32, device)}
        self._models["reference"] = load_causal_lm(base, dtype, device)
        self.has_critic = critic == "separate"
        if self.has_critic:
            self._models["critic"] = copy.deepcopy(self._models["policy"])
            output = self._models["critic"].get_output_embeddings()
            inputs = self._models["critic"].get_input_embeddings()
            for parameter in output.parameters():  # a critic has no use for an untied output layer
                parameter.requires_grad_(parameter is inputs.weight)
        self._models["reference"].requires_grad_(False)
        self._masters = {role: Masters(model, dtype) for role, model in self._models.items()
                         if dtype != torch.float32 and role != "reference"}
        for model in self._models.values():
            no_dropout(model)
            plain_output_layer(model)  # found out now, not inside a pass
            self._packs = bears_packing(model)
        self.value_head = value_head(hidden_size(self._models["policy"]), device) if critic else None

    @contextlib.contextmanager
    def model(self, role: Role, lower: LowerBlocks | None = None) -> Iterator[Any]:
        """See Roles.model."""
        yield self._models[role if role != "critic" or self.has_critic else "policy"]

    def lower_blocks(self) -> LowerBlocks | None:
        """See Roles.lower_blocks: models of their own share nothing."""
        return None

    def trainable(self) -> dict[str, nn.Parameter]:
        """See Roles.trainable."""
        found: dict[str, nn.Parameter] = {}
        for role in ("policy", "critic"):
            if role in self._masters:
                found |= {f"{role}.{n}": p for n, p in self._masters[role].weights.items()}
            elif role in self._models:
                found |= {f"{role}.{n}": p for n, p in self._models[role].named_parameters() if p.requires_grad}
        return found | head_parameters(self.value_head)

    def frozen(self) -> dict[str, torch.Tensor]:
        """The reference's weights."""
        return dict(self._models["reference"].named_parameters())

    def refresh(self) -> None:
        """See Roles.refresh."""
        for masters in self._masters.values():
            masters.refresh()

    def models(self) -> dict[Role, Any]:
        """See Roles.models."""
        return dict(self._models)

    def save_policy(self, folder: Path, facts: dict[str, Any], state: dict[str, torch.Tensor] | None = None) -> None:
        """See Roles.save_policy. In float32: bfloat16 would round small updates away."""
        from trivet.artifacts import write_json
        from trivet.models.source import load_tokenizer

        masters = self._masters.get("policy")
        with masters.exact() if masters else contextlib.nullcontext():
            self._models["policy"].save_pretrained(folder, state_dict=state)
        load_tokenizer(self.base).save_pretrained(folder)
        write_json(folder / "trivet_model.json", {"schema_version": 1, "from": self.base.name, **facts})

    def plan(self) -> list[str]:
        """See Roles.plan."""
        lines = ["every role a model of its own (full fine-tuning):"]
        for role, model in self._models.items():
            lines.append(f"  {role}: {megabytes(model.parameters()):.0f} MB"
                         + (f" in {masters.words}" if (masters := self._masters.get(role)) else ""))
        if not self.has_critic:
            lines.append("  critic: none" if self.value_head is None else "  critic: a head on the policy's pass")
        if not self._packs:
            lines.append("  passes are padded: this model's attention does not bear packed rows")
        return lines
