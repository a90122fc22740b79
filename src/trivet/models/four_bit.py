"""A frozen trunk in four bits, for a GPU with little memory (Dettmers et al. 2023, 'QLoRA').

Linear layers of the blocks in NF4 with doubly quantized constants, unpacked to the compute precision as they are used;
embeddings, norms and output layer as they were. The adapters that learn stay float32.

Not tried on a GPU here: none was lent. The path was run on a CPU, where bitsandbytes is slow.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from trivet.errors import TrivetError


def quantization(dtype: torch.dtype, device: str) -> Any:
    """transformers' configuration of it. Raises TrivetError where there is no CUDA GPU or no bitsandbytes."""
    if not device.startswith("cuda"):
        raise TrivetError(f"a trunk in four bits needs a CUDA GPU, this runs on {device}", field="four_bit",
                          mend="leave four_bit off; on a CPU lower micro_batch or turn checkpoint_activations on")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise TrivetError("bitsandbytes is not installed", field="four_bit", mend="pip install 'trivet[four-bit]'")
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=dtype)
