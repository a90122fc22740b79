"""`trivet ppo --plan`: what a run would need in memory and how long a step would take, before any weight is loaded.

Memory is arithmetic on the model's config.json (plan_memory.py). Time is operations by phase over measured rates
(rates.py): those of this machine, measured now, or of one that was measured before (machines.yaml, or a file of one's
own). A rate that nobody measured is not made up: the time that needs it is a lower bound, and says so, or is missing.

Not covered: the traffic between devices, mixtures of experts, rollouts by a vLLM server, the time in which four bits
are unpacked, evaluations.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path

from trivet.artifacts import read_json
from trivet.config import EMBEDDED, LoRA, load_yaml
from trivet.errors import TrivetError
from trivet.policy.config import PlanConfig

GATED = {"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "granite", "phi3"}
"""Kinds whose MLP has a gate: three matrices."""
ROLLOUT_ROWS = 64
"""Rows that the in-process engine holds at once (policy/setup.py)."""
FOUR_BIT = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4: half, an 8-bit scale for 64 of them, a float32 one for 256 scales (QLoRA, section 3)."""
SERVED = "rollout (by the server: not covered)"
"""The phase's name where a vLLM server draws."""
MACHINES = Path(__file__).with_name("machines.yaml")


# --- the model ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """A decoder's sizes, from its config.json."""

    kind: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool
    context: int | None

    @property
    def query(self) -> int:
        """Width of all heads together."""
        return self.heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """The linear layers of a block: name → (inputs, outputs)."""
        h, q, kv, i = self.hidden, self.query, self.kv_heads * self.head_dim, self.intermediate
        if self.kind == "gpt2":
            return {"c_attn": (h, 3 * h), "attn.c_proj": (h, h), "c_fc": (h, i), "mlp.c_proj": (i, h)}
        return {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv), "o_proj": (q, h),
                "gate_proj": (h, i), "up_proj": (h, i), "down_proj": (i, h)}

    @property
    def matrices(self) -> int:
        """Weights in a block's matrices."""
        return sum(a * b for a, b in self.linears().values())

    @property
    def block(self) -> int:
        """Parameters of a block."""
        if self.kind == "gpt2":
            return self.matrices + sum(b for _, b in self.linears().values()) + 4 * self.hidden
        norms = {"gemma2": 4, "gemma3_text": 4}.get(self.kind, 2) * self.hidden
        biases = self.query + 2 * self.kv_heads * self.head_dim if self.kind == "qwen2" else 0
        heads = 2 * self.head_dim if self.kind in ("qwen3", "gemma3_text") else 0
        if self.kind == "olmo2":
            heads = self.query + self.kv_heads * self.head_dim
        return self.matrices + norms + biases + heads

    @property
    def parameters(self) -> int:
        """All of them."""
        words = self.vocabulary * self.hidden * (1 if self.tied else 2)
        if self.kind == "gpt2":
            return words + (self.context or 0) * self.hidden + self.layers * self.block + 2 * self.hidden
        return words + self.layers * self.block + self.hidden

    @property
    def rest(self) -> int:
        """Parameters beside the blocks: embeddings, final norm, an output layer of its own."""
        return self.parameters - self.layers * self.block

    def adapter(self, config: LoRA) -> int:
        """Parameters of a LoRA adapter in one block. Raises TrivetError for a target that no layer has."""
        found = self.linears()
        if config.targets == "attention":
            chosen = [n for n in found if n in ("q_proj", "k_proj", "v_proj", "o_proj", "c_attn", "attn.c_proj")]
        elif config.targets == "all-linear":
            chosen = list(found)
        else:
            for target in config.targets:
                if not any(n == target or n.endswith(f".{target}") for n in found):
                    raise TrivetError(f"{target!r} fits no linear layer of this model", field="lora.targets",
                                      mend=f"the layers are: {', '.join(found)}")
            chosen = [n for n in found if any(n == t or n.endswith(f".{t}") for t in config.targets)]
        return sum(config.r * sum(found[n]) for n in chosen)


def read_shape(model: str) -> Shape:
    """The shape of a model named by a folder (config.json is enough), a hub id, or the embedded model's name.

    Raises TrivetError for a configuration that is missing, of another kind than a decoder, or a mixture of experts.
    """
    file = _config_file(model)
    whole = read_json(file)
    found = whole.get("text_config") or whole
    kind = str(found.get("model_type") or whole.get("model_type"))
    if any(found.get(k) for k in ("num_experts", "num_local_experts", "n_routed_experts")):
        raise TrivetError("this is a mixture of experts, for which there is no plan", file=file, field="model",
                          mend="give a dense decoder")
    if kind not in GATED | {"gpt2"}:
        raise TrivetError(f"models of the kind {kind!r} can't be planned", file=file, field="model_type",
                          expected=", ".join(sorted(GATED | {"gpt2"})), mend="give one of these kinds")

    def number(*names: str, default: int | None = None) -> int:
        value = next((found[n] for n in names if found.get(n) is not None), default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise TrivetError(f"{names[0]} is {value!r}", file=file, field=names[0], expected="a positive number",
                              mend="give the config.json that belongs to the model")
        return value

    hidden, heads = number("hidden_size", "n_embd"), number("num_attention_heads", "n_head")
    return Shape(
        kind=kind, layers=number("num_hidden_layers", "n_layer"), hidden=hidden, heads=heads,
        kv_heads=number("num_key_value_heads", default=heads), head_dim=number("head_dim", default=hidden // heads),
        intermediate=number("intermediate_size", "n_inner", default=4 * hidden if kind == "gpt2" else None),
        vocabulary=number("vocab_size"),
        # gpt2 and gemma tie where they do not say otherwise, and so did transformers' own default
        tied=bool(found.get("tie_word_embeddings", whole.get("tie_word_embeddings", kind in (
            "gpt2", "gemma", "gemma2", "gemma3_text")))),
        context=number("max_position_embeddings", "n_positions", default=2**31))


def _config_file(model: str) -> Path:
    from trivet.models.source import adapter_base, require_hub, resolve

    folder = Path(model).expanduser()
    if model == EMBEDDED or folder.exists() or model.count("/") != 1 or model.startswith((".", "/", "~")):
        source = resolve(model)
        return (adapter_base(source) if source.is_adapter else source).folder / "config.json"
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:  # the configuration alone: the weights may be a hundred gigabytes
        return Path(hf_hub_download(model, "config.json", local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        require_hub(model)
    try:
        return Path(hf_hub_download(model, "config.json"))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise TrivetError(f"the hub does not give {model!r}: {str(error).splitlines()[0][:200]}", field="model",
                          mend="check the id, and `hf auth login` for a gated model") from error


# --- rates ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rates:
    """What a device was measured to do. None: not measured."""

    source: str
    precision: str
    """Of the trunk, at which they were measured."""
    matmul: float
    """FLOP/s of large matrix products."""
    bandwidth: float | None = None
    """Bytes/s at which weights are read."""
    forward: float | None = None
    """Share of `matmul` that a forward pass of a block reaches."""
    update: float | None = None
    """The same of forward and backward, adapters as in the update."""
    head: float | None = None
    """The same of the output layer with its softmax, forward and backward."""
    decode_block: float | None = None
    """Seconds of a block in a decode step, beyond its products and reading its weights."""
    decode_step: float | None = None
    """Seconds of a decode step beyond its blocks: sampling, bookkeeping."""
    runtime_bytes: float | None = None
    """Memory of the program itself."""


def read_rates(machine: str, file: Path | None) -> Rates:
    """The rates of a machine by its name in `file`, or in machines.yaml. Raises TrivetError for an unknown one."""
    path = file or MACHINES
    known, lines = load_yaml(path)
    if machine not in known:
        raise TrivetError(f"no rates of {machine!r} were measured", file=path, field="plan.machine",
                          expected=f"here, or one of: {', '.join(known) or 'none'}",
                          mend="on that machine run `trivet ppo --plan --plan.save-rates FILE`, and give the file here "
                          "with --plan.rates FILE")
    values = known[machine]
    names = {f.name for f in fields(Rates)}
    required = {"source", "precision", "matmul"}
    if not isinstance(values, dict) or not required <= set(values) <= names:
        raise TrivetError(f"the rates of {machine!r} are not complete", file=path, line=lines.get((machine,)),
                          expected=f"{', '.join(sorted(required))}; known are {', '.join(sorted(names))}",
                          mend="let `trivet ppo --plan --plan.save-rates FILE` write it")
    for name, value in values.items():
        word = name in ("source", "precision")
        fits = isinstance(value, str) if word else (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            # a step may cost nothing beyond its blocks
            and (value >= 0 if name.startswith("decode") else value > 0))
        if not fits or (name == "precision" and value not in ("float32", "bfloat16")):
            raise TrivetError(f"{name} is {value!r}", file=path, line=lines.get((machine, name)), field=name,
                              expected="float32 or bfloat16" if name == "precision" else "a positive number",
                              mend="write a rate that was measured")
    return Rates(**values)


# --- who holds what -------------------------------------------------------------------------------------------


def can_spread(config: PlanConfig) -> bool:
    """Whether the run would let FSDP spread its models (policy/setup.py)."""
    return config.plan.gpus > 1 and config.generate == "torch" and not config.four_bit


def compute_precision(config: PlanConfig, precision: str) -> str:
    """In what the passes of the run compute, where its trunk, or --device.precision, is in `precision`.

    All weights trained: in copies of that precision (models/masters.py), but spread by FSDP in float32 itself.
    """
    spread = can_spread(config) and config.device.shard != "none"
    return "float32" if config.tune == "full" and spread else precision


# --- time -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Phase:
    """A phase of a step on one device."""

    name: str
    flops: float
    seconds: float
    bound: bool
    """True where a rate is missing that would make it longer: `seconds` is the least."""


def step_time(shape: Shape, config: PlanConfig, rates: Rates, prompt: float, response: float) -> list[Phase]:
    """Phases of a step: rollout, scoring, evaluate, update. Each device has its share of the answers."""
    devices = max(1, config.plan.gpus)
    rows = math.ceil(config.rollout / devices)
    precision = compute_precision(config, rates.precision)
    width = 2 if precision == "bfloat16" else 4
    # rates in bfloat16 are too good for float32, and nobody measured the unpacking of four bits
    beyond = precision != rates.precision or config.four_bit
    lora = config.tune == "lora"
    adapted = min(config.lora.last_layers or shape.layers, shape.layers) if lora else shape.layers
    low_rank = shape.adapter(config.lora) if lora else 0
    length = prompt + response
    attention = 4 * shape.query * length
    separate = config.has_critic and config.critic == "separate"
    head = 2 * shape.hidden * shape.vocabulary
    answers = rows * response
    # answers to one prompt share it in every block but for attention
    words, lines = rows * prompt / min(config.answers, config.micro_batch) + answers, rows * length

    def forward(blocks: int, low: int = low_rank) -> float:
        return words * (blocks * 2 * shape.matrices + min(blocks, adapted) * 2 * low) + lines * blocks * attention

    def seconds(flops: float, share: float | None) -> float:
        return flops / (rates.matmul * (share or 1.0))

    # rollout: prompts once each, then a step a token for the rows that stand together
    held = min(ROLLOUT_ROWS, rows)
    steps = math.ceil(rows / held) * response
    prefill = rows / config.answers * prompt * shape.layers * (2 * shape.matrices + 4 * shape.query * prompt)
    bandwidth = rates.bandwidth or math.inf
    cached = held * length * 2 * shape.kv_heads * shape.head_dim * width
    block = max(held * (2 * shape.matrices + attention) / rates.matmul,
                (shape.matrices * (FOUR_BIT if config.four_bit else width) + cached) / bandwidth)
    output = max(held * head / rates.matmul, shape.hidden * shape.vocabulary * width / bandwidth)
    decode = steps * (shape.layers * (block + (rates.decode_block or 0.0)) + output + (rates.decode_step or 0.0))
    found = [Phase("rollout", prefill + answers * (shape.layers * (2 * shape.matrices + attention) + head),
                   seconds(prefill, rates.forward) + decode, beyond or rates.decode_block is None)]
    if config.generate == "vllm":
        found = [Phase(SERVED, 0.0, 0.0, True)]
    scored = forward(shape.layers) if _scores(config) else 0.0
    found.append(Phase("scoring", scored, seconds(scored, rates.forward),
                       scored > 0 and (beyond or rates.forward is None)))
    # evaluate: the blocks below the adapters run once for all roles, and are there for the update, too
    one_pass = devices == 1 and config.minibatches == 1 and rows <= config.micro_batch
    policy, again = forward(shape.layers), forward(adapted)
    reference = forward(adapted, 0)
    passes = policy + reference + (again if separate else 0.0)
    outputs = 2 * answers * head
    found.append(Phase("evaluate", passes + outputs, seconds(passes, rates.forward) + seconds(outputs, rates.head),
                       beyond or rates.forward is None))
    backward = words * adapted * (2 * shape.matrices * (1 if lora else 2) + 4 * low_rank) \
        + lines * adapted * 2.5 * attention
    # activation checkpointing: each block once more, as its turn comes in the backward pass
    ahead = again * (2 if config.checkpoint_activations else 1)
    update_passes = config.epochs * (ahead + backward) * (2 if separate else 1) - (again if one_pass else 0.0)
    # of a frozen output layer the gradient is made in the forward pass; a trained one's logits are made twice
    outputs = answers * head * (config.epochs * (2 if lora else 4) - (1 if one_pass else 0))
    trained: float = shape.adapter(config.lora) * adapted if lora else shape.parameters
    if not lora and can_spread(config) and config.device.shard != "none":
        trained = shape.layers * shape.block / devices + shape.rest
    # AdamW reads gradient, weight and two moments and writes three of them; copies are made of the weights it wrote
    moved = 28 + (6 if not lora and precision == "bfloat16" else 0)
    adam = config.epochs * config.minibatches * trained * (2 if separate else 1) * moved / bandwidth
    found.append(Phase("update", update_passes + outputs,
                       seconds(update_passes, rates.update) + seconds(outputs, rates.head) + adam,
                       beyond or rates.update is None))
    return found


def _scores(config: PlanConfig) -> bool:
    from trivet.judge.rewards import parse_terms

    return not config.reward or any(t.kind == "model" for t in parse_terms(config.reward))
