"""LoRA adapters: adding them to a trunk, saving and loading them with the sha256 of the base they stand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from trivet.artifacts import read_json, write_json
from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.models.source import ModelSource, weights_sha256


def block_count(model: Any) -> int:
    """Transformer blocks of a decoder."""
    config = model.config.get_text_config()
    return int(config.num_hidden_layers)


def target_names(model: Any, targets: list[str] | str) -> list[str]:
    """The ends of the names of the layers to adapt, in the blocks only (not the output layer).

    Raises TrivetError where a name fits no layer: an adapter that adapts nothing must not pass in silence.
    """
    from transformers.pytorch_utils import Conv1D

    linear = {
        name for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and any(part.isdigit() for part in name.split("."))
    }
    ends = {name.split(".")[-1] for name in linear}
    if targets == "all-linear":
        return sorted(ends)
    if targets == "attention":
        found = {n.split(".")[-1] for n in linear if "attn" in n or "attention" in n}
        # GPT-2 calls the output of attention and of the MLP alike (c_proj): the name takes in both
        if found:
            return sorted(found)
        raise TrivetError("no attention layers were found in this model by name", field="lora.targets",
                          mend=f"name the layers; there are: {', '.join(sorted(ends))}")
    for target in targets:
        if not any(name == target or name.endswith(f".{target}") for name in linear):
            raise TrivetError(f"{target!r} fits no linear layer of this model", field="lora.targets",
                              mend=f"the layers are: {', '.join(sorted(ends))}")
    return list(targets)


def lora_config(model: Any, config: LoRA, task: str) -> Any:
    """PEFT's configuration of an adapter. Dropout is 0: PPO's ratio and exact resume need it off."""
    from peft import LoraConfig

    layers = block_count(model)
    chosen = None
    if config.last_layers is not None and config.last_layers < layers:
        chosen = list(range(layers - config.last_layers, layers))
    return LoraConfig(
        r=config.r, lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft scales by alpha / r, fractions too
        lora_dropout=0.0, bias="none", task_type=task,
        target_modules=target_names(model, config.targets), layers_to_transform=chosen,
        fan_in_fan_out=type(model).__name__.startswith("GPT2"),
    )


def with_adapter(model: Any, config: Any) -> Any:
    """A PEFT model: `model` with a new adapter (see `lora_config`) that alone is trained, in float32."""
    from peft import get_peft_model

    model = get_peft_model(model, config)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def save_adapter(model: Any, name: str, folder: Path, base: ModelSource, facts: dict[str, Any]) -> None:
    """A PEFT adapter folder that names its base and the base's sha256. Loads with plain PEFT."""
    from peft import get_peft_model_state_dict

    folder.mkdir(parents=True, exist_ok=True)
    state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    save_file({k: v.detach().float().cpu().contiguous() for k, v in state.items()},
              folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[name]
    was, config.inference_mode = config.inference_mode, True
    named, config.base_model_name_or_path = config.base_model_name_or_path, base_name(base)
    config.save_pretrained(str(folder))
    config.inference_mode, config.base_model_name_or_path = was, named
    write_json(folder / "trivet_adapter.json", {
        "schema_version": 1, "base": base_name(base), "base_sha256": weights_sha256(base.folder), **facts})


def base_name(base: ModelSource) -> str:
    """What an adapter calls its base: a folder's absolute path, or the embedded model's or hub's name."""
    path = Path(base.name).expanduser()
    return str(path.resolve()) if path.exists() else base.name


def adapter_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of a saved adapter; TrivetError for a damaged file."""
    path = folder / "adapter_model.safetensors"
    try:
        return load_file(path)
    except Exception as error:  # safetensors raises its own kinds for torn and missing files
        raise TrivetError(f"the adapter does not load: {error}", file=path,
                          mend="give an adapter folder, whole") from None


def stands_on(adapter: Path, base: ModelSource) -> bool:
    """Whether an adapter was trained on these very weights."""
    mark = adapter / "trivet_adapter.json"
    return mark.is_file() and read_json(mark, "base_sha256")["base_sha256"] == weights_sha256(base.folder)


def load_into(model: Any, folder: Path, name: str) -> None:
    """Load a saved adapter's LoRA tensors under `name` into a PEFT model that stands on the same base.

    A reward model's adapter (sequence classification) fits a causal trunk: the names inside the trunk are
    the same; its head is left to the caller.
    """
    from peft import PeftConfig, TaskType, set_peft_model_state_dict

    config = PeftConfig.from_pretrained(str(folder))
    config.task_type, config.modules_to_save = TaskType.CAUSAL_LM, None
    model.add_adapter(name, config)
    tensors = {k: v for k, v in adapter_tensors(folder).items() if "lora_" in k}
    missing: Any = set_peft_model_state_dict(model, tensors, adapter_name=name)
    lost = [k for k in missing.missing_keys if f".{name}." in k]
    if lost or missing.unexpected_keys:
        raise TrivetError(
            f"the adapter does not fit the trunk: {len(lost)} tensors missing, "
            f"{len(missing.unexpected_keys)} unexpected", file=folder, mend="train it on this base model")
