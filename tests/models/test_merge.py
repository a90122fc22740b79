"""An adapter merged into its base answers as the adapter does."""

from __future__ import annotations

import pytest
import torch

from trivet.cli import main
from trivet.config import LoRA
from trivet.errors import TrivetError
from trivet.models.merge import merge_command
from trivet.models.roles import SharedTrunk
from trivet.models.source import load_causal_lm, load_tokenizer, resolve


@pytest.fixture
def adapter(any_tiny_model_folder, tmp_path):
    source = resolve(str(any_tiny_model_folder))
    roles = SharedTrunk(source, torch.float32, "cpu", LoRA(r=4))
    torch.manual_seed(0)
    for parameter in roles.trainable().values():
        parameter.data.normal_(0, 0.2)
    roles.save_policy(tmp_path / "policy", {})
    return roles, tmp_path / "policy", source


def test_the_merged_model_is_the_adapter_on_its_base(adapter, tmp_path, capsys) -> None:
    roles, policy, source = adapter
    main(["models", "merge", str(policy), str(tmp_path / "whole")])
    assert capsys.readouterr().out.strip().endswith("whole")
    merged = resolve(str(tmp_path / "whole"))
    assert not merged.is_adapter
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad(), roles.model("policy") as model:
        expected = model(input_ids=ids).logits
        found = load_causal_lm(merged, torch.float32, "cpu")(input_ids=ids).logits
        base = load_causal_lm(source, torch.float32, "cpu")(input_ids=ids).logits
    assert torch.allclose(found, expected, atol=1e-4) and not torch.allclose(found, base, atol=1e-2)
    assert load_tokenizer(merged).get_vocab() == load_tokenizer(source).get_vocab()


def test_refused(adapter, tmp_path) -> None:
    _, policy, source = adapter
    with pytest.raises(TrivetError, match="whole model already"):
        merge_command(str(source.folder), tmp_path / "x")
    (tmp_path / "taken").mkdir()
    with pytest.raises(TrivetError, match="stands there already"):
        merge_command(str(policy), tmp_path / "taken")
    with pytest.raises(TrivetError, match="no model"):
        merge_command(str(tmp_path / "nothing"), tmp_path / "y")
