"""The stage: students, on policy, stored logits, recovery, what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from trivet.compress.distill import rows_of
from trivet.compress.distill_config import DistillConfig
from trivet.compress.fidelity import compare, figures
from trivet.compress.grid import round_to_nearest
from trivet.compress.on_policy import OnPolicy, is_drawn, prompt_of, tensors
from trivet.compress.quantize_config import Grid
from trivet.compress.students import make_student
from trivet.compress.teachers import ModelTeacher
from trivet.compress.variant import read_variant
from trivet.config import LoRA
from trivet.data.supervised import read_examples
from trivet.errors import TrivetError
from trivet.generate.config import Sampling
from trivet.models import lora
from trivet.models.source import load_causal_lm, load_tokenizer, resolve
from trivet.runs import Run
from trivet.stages import STAGES, run_stage

WORDS = ("red", "green", "blue", "warm", "cold", "soft")


@pytest.fixture
def chats(jsonl) -> Path:
    return jsonl("chats.jsonl", [{"prompt": f"Say {w}.", "completion": f"{w} it is"} for w in WORDS] * 3)


@pytest.fixture
def heldout(jsonl) -> Path:
    return jsonl("heldout.jsonl", [{"prompt": f"Say {w}!", "completion": f"{w} it is"} for w in ("loud", "plain")])


def distil(out: Path, by: Path, **changes):
    given = {"out": out, "teacher": {"by": str(by)}, "student": {"layers": 1}, "device": {"threads": 1},
             "epochs": 4, "batch": 3, "max_length": 64, "optimizer": {"lr": 1e-2}} | changes
    return run_stage(STAGES["distill"], DistillConfig(**given))


def metrics(out: Path) -> list[dict]:
    return [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]


# --- the stage ----------------------------------------------------------------------------------------------------


def test_a_student_comes_nearer_to_its_teacher(chats, heldout, tiny_model_folder, tmp_path) -> None:
    summary = distil(tmp_path / "out", tiny_model_folder, data=chats, heldout=heldout)
    rows = metrics(tmp_path / "out")
    assert len(rows) == summary.steps
    for row in rows:
        assert row["loss"] == pytest.approx(0.5 * row["distillation_loss"] + 0.5 * row["student_loss"], rel=1e-5)
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert rows[-1]["student_loss"] < rows[0]["student_loss"]
    assert summary.student_parameters < summary.teacher_parameters
    assert summary.share_of_parameters == round(summary.student_parameters / summary.teacher_parameters, 4)
    assert summary.heldout_loss_after["value"] < summary.heldout_loss_before["value"]
    assert summary.heldout_kl_before["value"] > 0 and summary.heldout_kl_after["n"] == 2
    assert summary.kept["n"] == 2
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model")
    assert model.config.num_hidden_layers == 1
    variant = read_variant(tmp_path / "out/model")
    assert (variant.method, variant.parameters) == ("distill", summary.student_parameters)
    assert variant.bits_per_weight == pytest.approx(32, rel=0.05)
    assert set(json.loads((tmp_path / "out/evaluation.json").read_text())) == {"before", "after"}


def test_the_teacher_is_frozen(chats, tiny_model_folder, tmp_path, monkeypatch) -> None:
    from trivet.compress import distill

    seen = []

    def watched(*args, **kwargs):
        lessons = prepare(*args, **kwargs)
        seen.append((lessons.model, {n: p.clone() for n, p in lessons.model.named_parameters()}))
        return lessons

    prepare = distill.prepare_lessons
    monkeypatch.setattr(distill, "prepare_lessons", watched)
    distil(tmp_path / "out", tiny_model_folder, data=chats, epochs=1)
    ((model, before),) = seen
    assert not any(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())


@pytest.mark.parametrize("kind", ["reverse", "jsd"])
def test_other_divergences_train_too(kind, chats, tiny_model_folder, tmp_path) -> None:
    distil(tmp_path / "out", tiny_model_folder, data=chats, kind=kind, alpha=1.0)
    rows = metrics(tmp_path / "out")
    assert rows[-1]["distillation_loss"] < rows[0]["distillation_loss"]
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["distillation_loss"], rel=1e-5)


def test_micro_batches_and_packing_change_nothing_but_bits(chats, tiny_model_folder, tmp_path) -> None:
    found = {}
    for name, changes in (("whole", {}), ("parts", {"micro_batch": 1}), ("again", {"checkpoint_activations": True})):
        distil(tmp_path / name, tiny_model_folder, data=chats, epochs=2, **changes)
        found[name] = [r["loss"] for r in metrics(tmp_path / name)]
    assert found["whole"] == pytest.approx(found["parts"], rel=1e-3)
    assert found["whole"] == found["again"]


def test_without_weight_the_teacher_is_not_run(chats, tiny_model_folder, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ModelTeacher, "soft", lambda *a: pytest.fail("the teacher was asked"))
    distil(tmp_path / "out", tiny_model_folder, data=chats, alpha=0.0, epochs=1)
    for row in metrics(tmp_path / "out"):
        assert "distillation_loss" not in row and row["loss"] == pytest.approx(row["student_loss"], rel=1e-6)


def test_the_teacher_answers_prompts(prompt_file, tiny_model_folder, tmp_path) -> None:
    summary = distil(tmp_path / "out", tiny_model_folder, prompts=prompt_file, epochs=2,
                     sampling={"max_new_tokens": 12, "temperature": 1.0})
    assert 0 < summary.conversations <= 12
    texts = [json.loads(x) for x in (tmp_path / "out/teacher/texts.jsonl").read_text().splitlines()]
    assert len(texts) == 12


def test_an_answer_that_was_cut_off_is_not_closed(tiny_model_folder, prompt_file) -> None:
    from trivet.artifacts import Prompt, read_rows
    from trivet.compress.lessons import with_answers
    from trivet.generate.writing import Written

    tokenizer = load_tokenizer(resolve(str(tiny_model_folder)))
    prompts = read_rows(prompt_file, Prompt)[:3]
    config = DistillConfig(prompts=prompt_file, teacher={"by": "t"}, student={"layers": 1}, max_length=64)
    whole, cut = with_answers(tokenizer, prompts, [Written("red", True, 1), Written("red", False, 1),
                                                   Written(" ", True, 0)], config)
    said = [tokenizer.decode([i for i, w in zip(e.ids, e.written, strict=True) if w]) for e in (whole, cut)]
    assert said == ["red<|end|>", "red"]


# --- students -----------------------------------------------------------------------------------------------------


def test_a_student_of_sizes_is_as_large_as_they_say(tiny_model_folder, tmp_path, chats) -> None:
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text("hidden_size: 16\nnum_hidden_layers: 3\nnum_attention_heads: 2\nnum_key_value_heads: 1\n")
    summary = distil(tmp_path / "out", tiny_model_folder, data=chats, student={"sizes": sizes}, epochs=1)
    config = AutoModelForCausalLM.from_pretrained(tmp_path / "out/model").config
    assert (config.hidden_size, config.num_hidden_layers, config.head_dim) == (16, 3, 8)
    assert summary.share_of_parameters < 1
    basis = resolve(str(tiny_model_folder))
    given = DistillConfig(data=chats, teacher={"by": "t"}, student={"sizes": sizes}).student
    one, other, third = (make_student(given, basis, "cpu", seed=s).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[n], other[n]) for n in one)
    assert not all(torch.equal(one[n], third[n]) for n in one)


@pytest.mark.parametrize(("text", "words", "line"), [
    ("hiden_size: 16\n", "no such size", 1),
    ("num_hidden_layers: 2\nvocab_size: 7\n", "its teacher 379", 2),
    ("hidden_size: big\n", "'big' is no size", 1),
    ("num_hidden_layers: 0\n", "0 is no size", 1),
    ("num_attention_heads: 4\nnum_key_value_heads: 3\n", "evenly", None),
    ("hidden_size: 30\n", "no model of these sizes", None),
])
def test_sizes_that_do_not_fit(text, words, line, tmp_path, tiny_model_folder) -> None:
    sizes = tmp_path / "sizes.yaml"
    sizes.write_text(text)
    given = DistillConfig(data="d", teacher={"by": "t"}, student={"sizes": sizes}).student
    with pytest.raises(TrivetError, match=words) as error:
        make_student(given, resolve(str(tiny_model_folder)), "cpu", seed=0)
    assert error.value.line == line


def test_the_layers_kept_are_the_teachers(tiny_model_folder) -> None:
    basis = resolve(str(tiny_model_folder))
    given = DistillConfig(data="d", teacher={"by": "t"}, student={"layers": 1}).student
    model, teacher = make_student(given, basis, "cpu", seed=0), load_causal_lm(basis, torch.float32, "cpu")
    assert torch.equal(model.model.layers[0].mlp.up_proj.weight, teacher.model.layers[0].mlp.up_proj.weight)
    given.layers = 3
    with pytest.raises(TrivetError, match="a model that has 2"):
        make_student(given, basis, "cpu", seed=0)


def test_another_vocabulary_is_refused(chats, tiny_model_folder, make_tiny, tmp_path) -> None:
    other = make_tiny(tmp_path / "other")
    path = other / "tokenizer.json"
    value = json.loads(path.read_text())
    vocabulary = value["model"]["vocab"]
    a, b = sorted(vocabulary, key=vocabulary.get)[40:42]
    vocabulary[a], vocabulary[b] = vocabulary[b], vocabulary[a]
    path.write_text(json.dumps(value))
    with pytest.raises(TrivetError, match="2 of 379 numbers stand for different tokens, such as 40"):
        distil(tmp_path / "out", tiny_model_folder, data=chats, student={"by": str(other)})


def test_the_student_is_saved_with_the_teachers_template(chats, tiny_model_folder, make_tiny, tmp_path) -> None:
    bare = make_tiny(tmp_path / "bare", chat=False, seed=4)
    distil(tmp_path / "out", tiny_model_folder, data=chats, student={"by": str(bare)}, epochs=1)
    assert load_tokenizer(resolve(str(tmp_path / "out/model"))).chat_template == \
        load_tokenizer(resolve(str(tiny_model_folder))).chat_template


# --- on policy ----------------------------------------------------------------------------------------------------


def test_on_policy_the_student_writes(chats, tiny_model_folder, tmp_path) -> None:
    distil(tmp_path / "out", tiny_model_folder, data=chats, on_policy=1.0, epochs=6,
           sampling={"max_new_tokens": 8, "temperature": 1.0})
    rows = metrics(tmp_path / "out")
    assert all(r["on_policy"] == 1 and r["student_loss"] == 0 for r in rows)
    early, late = (sum(r["distillation_loss"] for r in part) for part in (rows[:6], rows[-6:]))
    assert late < early


def test_a_share_on_policy(chats, tiny_model_folder, tmp_path) -> None:
    distil(tmp_path / "out", tiny_model_folder, data=chats, on_policy=0.5, epochs=4, batch=6, micro_batch=2,
           sampling={"max_new_tokens": 8, "temperature": 1.0})
    shares = [r["on_policy"] for r in metrics(tmp_path / "out")]
    assert 0 < sum(shares) / len(shares) < 1
    for row in metrics(tmp_path / "out"):
        assert row["loss"] == pytest.approx(0.5 * row["distillation_loss"] + 0.5 * row["student_loss"], rel=1e-5)


def test_what_the_student_writes_is_its_own(tiny_model_folder, chats, tmp_path) -> None:
    """By hand: greedy answers of the weights that the model has at that moment."""
    source = resolve(str(tiny_model_folder))
    student, tokenizer = load_causal_lm(source, torch.float32, "cpu"), load_tokenizer(source)
    examples = read_examples(chats, tokenizer, 64, setting="max-length")
    config = DistillConfig(data=chats, teacher={"by": "t"}, student={"layers": 1}, max_length=64, on_policy=1.0)
    batch = tensors(rows_of(examples, config)[:4], 0)
    hook = OnPolicy(Run(tmp_path / "run"), share=1.0, sampling=Sampling(temperature=0, max_new_tokens=5),
                    stops=frozenset({tokenizer.eos_token_id}), pad=0, tokenizer=tokenizer, seed=0, max_length=64)
    for _ in range(2):
        hook(student, 3, [batch])
        for row, example in zip(batch["rows"], examples, strict=False):
            prompt = prompt_of(example)
            assert tokenizer.decode(prompt).endswith("<|assistant|>")
            made = student.generate(torch.tensor([prompt]), max_new_tokens=5, do_sample=False)[0].tolist()
            assert list(row.examples[0].ids) == made and not row.hard
            assert row.examples[0].written == (False,) * len(prompt) + (True,) * (len(made) - len(prompt))
        assert batch["hard"].tolist() == [False] * 4 and batch["input_ids"].shape[0] == 4
        with torch.no_grad():
            student.model.layers[0].mlp.down_proj.weight.mul_(-2)


def test_draws_are_a_share_and_change_from_step_to_step() -> None:
    drawn = [[is_drawn(0, step, n, 0.3) for n in range(200)] for step in range(5)]
    assert 0.25 < sum(map(sum, drawn)) / 1000 < 0.35
    assert drawn[0] != drawn[1]


# --- stored logits ------------------------------------------------------------------------------------------------


def test_stored_logits_teach_as_the_teacher_does(chats, tiny_model_folder, make_tiny, tmp_path) -> None:
    student = {"by": str(make_tiny(tmp_path / "student", seed=4))}
    distil(tmp_path / "direct", tiny_model_folder, data=chats, student=student, epochs=2)
    summary = distil(tmp_path / "all", tiny_model_folder, data=chats, student=student, epochs=2,
                     teacher={"by": str(tiny_model_folder), "top_k": 379})
    assert summary.stored_bytes_per_token == 379 * 4 + 8
    one, other = (metrics(tmp_path / n) for n in ("direct", "all"))
    for a, b in zip(one, other, strict=True):  # float16 of log-probabilities is all that differs
        assert a["distillation_loss"] == pytest.approx(b["distillation_loss"], rel=2e-2, abs=1e-3)
        assert a["student_loss"] == pytest.approx(b["student_loss"], rel=2e-2)
    # stored by one run, learned from by another, without the teacher
    stored = distil(tmp_path / "store", tiny_model_folder, data=chats, store_only=True, student={},
                    teacher={"by": str(tiny_model_folder), "top_k": 8})
    assert stored.steps == 0 and not (tmp_path / "store/model").exists()
    distil(tmp_path / "learn", tiny_model_folder, data=chats, student=student, epochs=2,
           teacher={"stored": tmp_path / "store/logits"})
    distil(tmp_path / "once", tiny_model_folder, data=chats, student=student, epochs=2,
           teacher={"by": str(tiny_model_folder), "top_k": 8})
    assert metrics(tmp_path / "learn") == metrics(tmp_path / "once")
    assert all(a["distillation_loss"] <= b["distillation_loss"] * 1.02 for a, b in
               zip(metrics(tmp_path / "once")[:1], one[:1], strict=True))


def test_other_data_than_was_stored_is_refused(chats, heldout, tiny_model_folder, tmp_path) -> None:
    distil(tmp_path / "store", tiny_model_folder, data=chats, store_only=True, student={},
           teacher={"by": str(tiny_model_folder), "top_k": 8})
    with pytest.raises(TrivetError, match="don't know 2"):
        distil(tmp_path / "out", tiny_model_folder, data=heldout, student={"by": str(tiny_model_folder)},
               teacher={"stored": tmp_path / "store/logits"})


# --- recovery -----------------------------------------------------------------------------------------------------


def prune_half(folder: Path, out: Path) -> Path:
    """A copy of a model with half of each block's matrices zero."""
    import shutil

    shutil.copytree(folder, out)
    state = load_file(out / "model.safetensors")
    for name, tensor in state.items():
        if ".layers." in name and tensor.dim() == 2:
            tensor[tensor.abs() <= tensor.abs().flatten().median()] = 0
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    return out


def test_zeros_stay_zeros(chats, tiny_model_folder, tmp_path) -> None:
    pruned = prune_half(tiny_model_folder, tmp_path / "pruned")
    kept = {"data": chats, "student": {"by": str(pruned)}, "alpha": 1.0,
            "optimizer": {"lr": 3e-3, "weight_decay": 0.1}}
    summary = distil(tmp_path / "out", tiny_model_folder, keep_zeros=True, **kept)
    before, after = (load_file(p / "model.safetensors") for p in (pruned, tmp_path / "out/model"))
    for name, tensor in before.items():
        if ".layers." in name and tensor.dim() == 2:
            assert torch.equal(tensor == 0, after[name] == 0), name
    assert 0.49 < summary.sparsity < 0.51
    assert metrics(tmp_path / "out")[-1]["distillation_loss"] < metrics(tmp_path / "out")[0]["distillation_loss"]
    assert distil(tmp_path / "loose", tiny_model_folder, **kept).sparsity < 0.01
    with pytest.raises(TrivetError, match="no zeros to keep"):
        distil(tmp_path / "none", tiny_model_folder, data=chats, student={"by": str(tiny_model_folder)},
               keep_zeros=True)


@pytest.mark.parametrize("keep", [False, True])
def test_training_through_a_quantization(chats, heldout, tiny_model_folder, tmp_path, keep) -> None:
    start = prune_half(tiny_model_folder, tmp_path / "pruned") if keep else tiny_model_folder
    grid = {"bits": 3, "group": 32, "symmetric": True}
    distil(tmp_path / "out", tiny_model_folder, data=chats, heldout=heldout, student={"by": str(start)}, epochs=6,
           alpha=1.0, optimizer={"lr": 3e-3}, keep_zeros=keep, quantize=grid | {"on": True})
    rows = metrics(tmp_path / "out")
    assert rows[-1]["distillation_loss"] < rows[0]["distillation_loss"]
    state = load_file(tmp_path / "out/model/model.safetensors")
    assert not any("parametrizations" in name for name in state)
    if keep:
        zeros = load_file(start / "model.safetensors")["model.layers.0.mlp.up_proj.weight"] == 0
        assert torch.equal(state["model.layers.0.mlp.up_proj.weight"] == 0, zeros)
    variant = read_variant(tmp_path / "out/model")
    assert "3-bit" in variant.notes[0] and variant.settings["quantize"]["bits"] == 3
    # rounded on the same grid the saved weights are what was trained, and the start what training began with
    source = resolve(str(tiny_model_folder))
    teacher, examples = load_causal_lm(source, torch.float32, "cpu"), read_examples(
        heldout, load_tokenizer(source), 64, setting="max-length")
    said = json.loads((tmp_path / "out/evaluation.json").read_text())
    for when, folder in (("before", start), ("after", tmp_path / "out/model")):
        student = load_causal_lm(resolve(str(folder)), torch.float32, "cpu")
        for name, p in student.named_parameters():
            if ".layers." in name and p.dim() == 2:
                p.data = round_to_nearest(p.data, Grid(**grid)).weight()
        found = figures(compare(student, teacher, examples, 0), with_teacher=True, seed=0)
        assert found["kl"].value == pytest.approx(said[when]["kl"]["value"], rel=1e-5)


def test_an_adapter_teaches_and_is_cut(chats, tiny_model_folder, tmp_path) -> None:
    """A policy of `ppo` as it stands: merged into its base."""
    source = resolve(str(tiny_model_folder))
    model = load_causal_lm(source, torch.float32, "cpu")
    model = lora.with_adapter(model, lora.lora_config(model, LoRA(r=4), "CAUSAL_LM"))
    torch.manual_seed(0)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    lora.save_adapter(model, "default", tmp_path / "adapter", source, {"role": "policy"})
    distil(tmp_path / "out", tmp_path / "adapter", data=chats, optimizer={"lr": 1e-6}, epochs=1)
    merged = model.merge_and_unload().state_dict()["model.layers.0.mlp.up_proj.weight"]
    found = load_file(tmp_path / "out/model/model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    torch.testing.assert_close(found, merged, atol=1e-4, rtol=1e-4)


def test_plain_text_teaches_too(tmp_path, tiny_model_folder) -> None:
    text = tmp_path / "plain.txt"
    text.write_text("Try rice with beans and a little lime. " * 30)
    summary = distil(tmp_path / "out", tiny_model_folder, data=text, max_length=32)
    assert metrics(tmp_path / "out")[-1]["loss"] < metrics(tmp_path / "out")[0]["loss"]
    assert summary.conversations > 1
    with pytest.raises(TrivetError, match="row 1 has no prompt"):
        distil(tmp_path / "policy", tiny_model_folder, data=text, max_length=32, on_policy=0.5)


def test_what_is_held_out_is_not_trained_on(chats, tiny_model_folder, tmp_path) -> None:
    with pytest.raises(TrivetError, match="18 held-out rows begin as rows to train on do"):
        distil(tmp_path / "out", tiny_model_folder, data=chats, heldout=chats)
