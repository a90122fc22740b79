"""What transformers' Trainer is told, where it would decide otherwise."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from trivet.training import trainer
from trivet.training.ranks import Ranks


@pytest.mark.parametrize("local", [0, 2])
def test_of_several_gpus_the_trainer_takes_this_ranks_alone(monkeypatch, tmp_path, local) -> None:
    """With stand-ins for torch's counting of GPUs: it has not been tried on real ones."""
    chosen = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    place = Ranks()
    place.local = local
    monkeypatch.setattr(trainer, "here", lambda: place)
    arguments = TrainingArguments(output_dir=str(tmp_path), per_device_train_batch_size=3, report_to=[])
    assert arguments.n_gpu == 4, "which is why"
    trainer.on_one_device(arguments)
    assert arguments.n_gpu == 1 and arguments.device == torch.device("cuda", local) == chosen[-1]
    assert arguments.train_batch_size == 3


def test_on_a_cpu_nothing_changes(tmp_path) -> None:
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to=[])
    trainer.on_one_device(arguments)
    assert arguments.n_gpu == 0 and arguments.device == torch.device("cpu")
