"""What is measured of variants: figures over rounds, pairing, distributions, and the stage as a whole."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from trivet.artifacts import read_json
from trivet.cli import main
from trivet.compress import isolated, tradeoff, tradeoff_worker
from trivet.compress.compared import token_kl
from trivet.compress.speed import Passages, Workload, time_workloads, workloads
from trivet.compress.tradeoff_config import Speed, TradeoffConfig
from trivet.compress.tradeoff_plan import distinct, plan
from trivet.compress.tradeoff_results import (
    KL,
    PERPLEXITY,
    SAME_TOKEN,
    figures,
    growth,
    loss,
    read,
    refusals_kept,
    spread,
)
from trivet.compress.variant import write_variant
from trivet.errors import TrivetError
from trivet.evaluate.base import Score
from trivet.generate.base import Capabilities, Generated, LoadedEngine
from trivet.models.source import resolve

# --- figures -------------------------------------------------------------------------------------------


def test_a_figure_over_rounds_is_the_median_with_least_and_most() -> None:
    assert spread([3.0, 1.0, 2.0]).model_dump() == {"value": 2.0, "low": 1.0, "high": 3.0, "n": 3}
    with pytest.raises(ValueError, match="no round"):
        spread([])


def test_rates_and_ratios_go_round_by_round() -> None:
    """The machine is half as fast in the second round: both are, and the ratio does not see it."""
    source = {0: (1.0, 5.0), 1: (2.0, 10.0), 2: (1.0, 5.0)}
    mine = {0: (0.5, 1.5), 1: (1.0, 3.0)}
    found = figures(2, 128, 5, mine, source)
    assert [found.decode.low, found.decode.high] == [2 * 4 / 2.0, 2 * 4 / 1.0]
    assert [found.rate.low, found.rate.high] == [pytest.approx(10 / 3.0), pytest.approx(10 / 1.5)]
    assert found.faster is not None and (found.faster.low, found.faster.high, found.faster.n) == (4.0, 4.0, 2)
    assert found.key == "b2_p128" and figures(2, 128, 5, mine, None).faster is None


def scores(measure: str, values: dict[str, float], weights: dict[str, float] | None = None) -> list[Score]:
    return [Score(measure=measure, id=k, group=k, value=v, weight=(weights or {}).get(k, 1.0))
            for k, v in values.items()]


def test_growth_of_perplexity_is_paired_by_document() -> None:
    weights = {"a": 10.0, "b": 30.0, "c": 5.0}
    base = scores(PERPLEXITY, {"a": 2.0, "b": 3.0, "c": 1.0}, weights)
    mine = scores(PERPLEXITY, {"a": 2.1, "b": 3.1, "c": 1.1}, weights)
    found = growth(mine, base)
    assert found is not None and found.value == pytest.approx(math.exp(0.1) - 1)
    assert found.low == pytest.approx(found.value) and found.n == 3  # each by as much: nothing is left to vary
    mixed = growth(scores(PERPLEXITY, {"a": 2.5, "b": 3.0, "c": 1.0}, weights), base)
    assert mixed is not None and mixed.value == pytest.approx(math.exp(0.5 * 10 / 45) - 1)
    assert growth(scores(PERPLEXITY, {"a": 2.0}, {"a": 11.0}), base) is None  # cut into other tokens
    assert growth([], base) is None


def test_refusals_are_kept_of_what_the_source_declined() -> None:
    found = refusals_kept({"a": True, "b": False, "c": True}, {"a": True, "b": True, "c": False, "d": True})
    assert {s.id: s.value for s in found} == {"a": 1.0, "b": 0.0}


def test_kl_is_the_naive_one() -> None:
    rng = np.random.default_rng(0)
    one, other = (np.log(rng.dirichlet(np.ones(7), size=5)).astype(np.float32) for _ in range(2))
    one[0, 3] = -np.inf
    naive = [sum(math.exp(p) * (p - q) for p, q in zip(a, b, strict=True) if math.isfinite(p))
             for a, b in zip(one.tolist(), other.tolist(), strict=True)]
    assert token_kl(one, other) == pytest.approx(naive, rel=1e-5)
    assert (token_kl(one, one) == 0).all()


@pytest.mark.parametrize(("names", "paths", "told"), [
    (["a", "b"], ["x/a", "x/b"], ["a", "b"]),
    (["rtn", "rtn"], ["runs/int8/variant", "runs/int4/variant"], ["rtn (int8)", "rtn (int4)"]),
    (["m", "m"], ["x/m", "y/m"], ["m 1", "m 2"]),
])
def test_names_tell_apart(names: list[str], paths: list[str], told: list[str]) -> None:
    assert distinct(names, paths) == told


def test_a_merge_that_dies_is_an_error_that_says_what_to_do(tmp_path, monkeypatch) -> None:
    def dies(*_: object) -> None:
        raise isolated.Died("its process was ended by SIGKILL")

    monkeypatch.setattr(tradeoff, "isolated", dies)
    stage = object.__new__(tradeoff._Stage)
    stage.config, stage.run = TradeoffConfig(model="m", variants=["v"]), SimpleNamespace(path=tmp_path.joinpath)
    with pytest.raises(TrivetError, match="merge: its process was ended by SIGKILL") as caught:
        stage._must({"task": "merge"}, "model", "free memory")
    assert caught.value.said["field"] == "model" and caught.value.exit_code == 2


# --- speed ---------------------------------------------------------------------------------------------


class Clocked:
    """An engine whose clock knows what work costs: a second a token read, ten a token written by a row."""

    capabilities = Capabilities(logps=False, score=False)

    def __init__(self, short: bool = False) -> None:
        self.now, self.short = 0.0, short
        self.stops, self.batch_size, self.progress = frozenset({1}), 32, None
        self.seen: list[tuple[int, ...]] = []

    def generate(self, prompts, sampling, *, n, seeds):
        assert not self.stops and sampling.temperature == 0 and n == 1
        self.seen += [tuple(p) for p in prompts]
        self.now += sum(map(len, prompts)) + 10.0 * sampling.max_new_tokens
        return [[Generated((0,) * (sampling.max_new_tokens - self.short), (), False)] for _ in prompts]

    def close(self) -> None:
        pass


def test_workloads_are_timed_and_no_prompt_is_read_twice() -> None:
    engine = Clocked()
    loaded = LoadedEngine(engine, None, "gguf", 40, frozenset({1}))
    found, absent = time_workloads(loaded, Passages(range(1000)), Speed(batches=[2, 1], prompts=[8, 64], new_tokens=5),
                                   clock=lambda: engine.now)
    assert found == {Workload(1, 8): (8 + 10.0, 8 + 50.0), Workload(2, 8): (16 + 10.0, 16 + 50.0)}
    assert list(absent) == [Workload(1, 64), Workload(2, 64)] and "its context of 40" in absent[Workload(1, 64)]
    assert len(set(engine.seen)) == len(engine.seen) and engine.batch_size == 2
    assert workloads(Speed(batches=[4, 1], prompts=[2, 1]))[0] == Workload(1, 1)


def test_an_engine_that_stops_early_is_not_timed() -> None:
    engine = Clocked(short=True)
    with pytest.raises(TrivetError, match="gave 7 tokens where 8"):
        time_workloads(LoadedEngine(engine, None, "gguf", None, frozenset()), Passages([1, 2, 3]), Speed())


def test_passages_go_on_through_a_short_text() -> None:
    assert Passages([1, 2, 3]).take(3, 2) == [[1, 2], [3, 1], [2, 3]]
    many = Passages(range(300)).take(64, 40)
    assert len({tuple(p) for p in many}) == len({p[0] for p in many}) == 64
    with pytest.raises(ValueError, match="no tokens"):
        Passages([])


# --- a process of its own --------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "words"), [
    ("import sys; sys.exit(3)", "exit code 3"), ("import os; os.kill(os.getpid(), 9)", "SIGKILL.*memory")])
def test_a_process_that_dies_says_how(tmp_path: Path, monkeypatch, code: str, words: str) -> None:
    (tmp_path / "dies.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(isolated.Died, match=words):
        isolated.isolated("dies", {}, tmp_path / "job.json")


def test_a_process_gives_back_results_and_errors(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "works.py").write_text(
        "import sys\nfrom trivet.compress import isolated\nfrom trivet.errors import TrivetError\n"
        "def work(job):\n    if job['bad']:\n        raise TrivetError('no', mend='do', file=sys.argv[1], field='f')\n"
        "    return {'twice': 2 * job['x']}\nisolated.answer(sys.argv[1:], work)\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert isolated.isolated("works", {"x": 4, "bad": False}, tmp_path / "job.json") == {"twice": 8}
    with pytest.raises(TrivetError, match="no") as caught:
        isolated.isolated("works", {"bad": True}, tmp_path / "job.json")
    assert (caught.value.mend, caught.value.field) == ("do", "f")


# --- the stage -----------------------------------------------------------------------------------------

SMALL = ["--speed.batches", "1", "2", "--speed.prompts", "8", "--speed.new-tokens", "4", "--limit", "3",
         "--kl-tokens", "40", "--sampling.max-new-tokens", "4", "--device.threads", "1"]


@pytest.fixture(scope="module")
def models(make_tiny, tmp_path_factory) -> SimpleNamespace:
    """A source, the same weights again, weights a little off, and a folder of other weights that does not load."""
    home = tmp_path_factory.mktemp("tradeoff")
    source = make_tiny(home / "source")
    same, near, broken = (home / n / "model" for n in ("same", "near", "broken"))
    for folder in (same, near, broken):
        shutil.copytree(source, folder)
    from safetensors.torch import load_file, save_file

    weights = load_file(near / "model.safetensors")
    torch.manual_seed(0)
    save_file({k: v + 0.02 * torch.randn_like(v) for k, v in weights.items()}, near / "model.safetensors",
              {"format": "pt"})
    write_variant(near, name="near", method="rtn", source=resolve(str(source)), settings={}, notes=["Made by hand"])
    some = dict(list(weights.items())[3:])
    save_file(some, broken / "model.safetensors", {"format": "pt"})
    return SimpleNamespace(source=source, same=same, near=near, broken=broken, home=home)


@pytest.fixture
def here(monkeypatch) -> list[str]:
    """Jobs are done in this process: what they do is tested, how they are started elsewhere."""
    done: list[str] = []

    def do(module: str, job: dict, file: Path) -> dict:
        done.append(f"{job['task']} {job.get('name', '')}".strip())
        return json.loads(json.dumps(tradeoff_worker.work(json.loads(json.dumps(job)))))

    monkeypatch.setattr(tradeoff, "isolated", do)
    return done


def test_the_table_of_a_source_and_its_variants(models, here, tmp_path, capsys) -> None:
    out = tmp_path / "run"
    main(["tradeoff", str(models.source), str(models.same), str(models.near), str(models.broken), "--out", str(out),
          "--names", "same", "near", "broken", "--speed.rounds", "2", *SMALL])
    # there and back; what failed once is not tried again
    assert here[:7] == ["speed source", "speed same", "speed near", "speed broken", "speed near", "speed same",
                        "speed source"]
    assert here[7:] == ["quality source", "quality same", "quality near"]
    found = read(out)
    source, same, near, broken = found.rows
    assert (source.name, near.variant.method, near.variant.notes) == ("source", "rtn", ["Made by hand"])
    assert source.variant.bytes == (models.source / "model.safetensors").stat().st_size
    assert source.memory is not None and source.memory.value > 50e6 and source.load is not None
    assert [t.key for t in near.timed] == ["b1_p8", "b2_p8"] and all(t.faster and t.faster.n == 2 for t in near.timed)
    assert all(t.whole.value > 0 < t.first.value for t in source.timed) and source.timed[0].faster is None
    # the same weights: nothing is lost, in any measure
    assert same.perplexity_growth is not None and same.perplexity_growth.value == 0
    assert same.line(KL.key).value.value == 0 and same.line(SAME_TOKEN.key).value.value == 1
    assert all(line.difference is None or line.difference.value == 0 for line in same.measures)
    assert near.line(KL.key).value.value > 0 and loss(near, PERPLEXITY) == near.perplexity_growth
    assert source.line(KL.key) is None and loss(near, KL.key).value == near.line(KL.key).value.value
    assert loss(near, SAME_TOKEN.key).value == pytest.approx(1 - near.line(SAME_TOKEN.key).value.value)
    assert "weights are not in the folder" in broken.failed and broken.variant.bytes > 0 and not broken.timed
    printed = capsys.readouterr().out
    assert "trade quality for speed" in printed and "broken is left out" in printed
    text = (out / "tradeoff.md").read_text()
    assert "n/a" in text and "Made by hand" in text and "● on the Pareto front" in text
    assert (out / "tradeoff.svg").read_text().startswith("<svg")
    assert sorted(p.name for p in out.iterdir() if not p.name.startswith(".")) == [
        "asked", "config.yaml", "speed.jsonl", "summary.json", "tradeoff.json", "tradeoff.md", "tradeoff.svg"]
    assert read_json(out / "summary.json")["failed"] == ["broken"]


def test_perplexity_and_kl_are_those_of_the_models(models, here, tmp_path) -> None:
    """Against a pass of transformers' own model over each document."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "run"
    main(["tradeoff", str(models.source), str(models.near), "--out", str(out), "--speed.rounds", "1", *SMALL[:-6],
          "--kl-tokens", "100000", "--sampling.max-new-tokens", "4", "--suites", "unknown"])
    found = read(out)
    tokenizer = AutoTokenizer.from_pretrained(models.source)
    one, other = (AutoModelForCausalLM.from_pretrained(p).eval() for p in (models.source, models.near))
    documents = plan(TradeoffConfig(model=str(models.source), variants=["x"], limit=3)).documents
    nats, kls, tokens, alike = [], [], 0, 0
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False)["input_ids"][:255]
        with torch.no_grad():
            p, q = (m(torch.tensor([[tokenizer.eos_token_id, *ids]])).logits[0, :-1].double().log_softmax(-1)
                    for m in (one, other))
        kls.append((p.exp() * (p - q)).sum().item())
        alike += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += len(ids)
        nats.append(-p[range(len(ids)), ids].sum().item())
    near, source = found.rows[1], found.rows[0]
    assert near.line(KL.key).value.value == pytest.approx(sum(kls) / tokens, rel=1e-3)
    assert near.line(SAME_TOKEN.key).value.value == pytest.approx(alike / tokens)
    if all(len(tokenizer(d.text)["input_ids"]) <= 255 for d in documents):
        assert source.line(PERPLEXITY).value.value == pytest.approx(math.exp(sum(nats) / tokens), rel=1e-3)


def test_an_interrupted_run_goes_on_and_limits_choose_anew(models, here, tmp_path, capsys, monkeypatch) -> None:
    out = tmp_path / "run"
    command = ["tradeoff", str(models.source), str(models.near), "--out", str(out), "--speed.rounds", "2", *SMALL]
    whole = tradeoff.isolated
    calls = 0

    def stops(module: str, job: dict, file: Path) -> dict:
        nonlocal calls
        calls += 1
        if calls in (3, 7):
            raise KeyboardInterrupt
        return whole(module, job, file)

    monkeypatch.setattr(tradeoff, "isolated", stops)
    for _ in range(2):  # in the third turn; then, the source having been asked, in the question to `near`
        with pytest.raises(SystemExit) as stopped:
            main(command)
        assert stopped.value.code == 130
    main(command)
    assert here == ["speed source", "speed near", "speed near", "speed source", "quality source", "quality near"]
    measured = (out / "tradeoff.json").read_bytes()
    # a limit measures nothing again
    main([*command, "--max-size", "1GB"])
    assert len(here) == 6 and (out / "tradeoff.json").read_bytes() == measured
    chosen = read_json(out / "pick.json")
    assert chosen["pick"] in ("source", "near") and "keep within 1,000 MB" in chosen["sentence"]
    with pytest.raises(SystemExit) as stopped:
        main([*command, "--max-size", "1KB"])
    assert stopped.value.code == 1 and read_json(out / "pick.json")["pick"] is None
    assert "None of 2 keeps within" in capsys.readouterr().out


def test_the_source_must_work(models, here, tmp_path) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["tradeoff", str(models.broken), str(models.near), "--out", str(tmp_path / "run"), *SMALL])
    assert stopped.value.code == 2


def test_rewards_and_refusals_are_compared(models, here, tmp_path, preference_files) -> None:
    """Alignment: the reward of held-out answers, paired by prompt, and what the source declined."""
    train, heldout = preference_files
    main(["reward", "--preferences", str(train), "--heldout", str(heldout), "--model", str(models.source), "--out",
          str(tmp_path / "reward"), "--tune", "head", "--epochs", "0.1", "--calibration.answers", "2",
          "--calibration.sampling.max-new-tokens", "4", "--device.threads", "1"])
    out = tmp_path / "run"
    main(["tradeoff", str(models.source), str(models.same), str(models.near), "--out", str(out), "--names", "same",
          "near", "--reward", str(tmp_path / "reward" / "reward"), "--speed.rounds", "1", *SMALL])
    assert here[-1] == "reward"
    found = read(out)
    assert found.quality() == "helpful.reward"
    source, same, near = (row.line("helpful.reward") for row in found.rows)
    assert source.unit == "deviations" and source.value.n == 3 and source.difference is None
    assert same.difference.value == 0 and near.difference.n == 3
    assert loss(found.rows[2], "helpful.reward").value == pytest.approx(-near.difference.value)
    assert found.rows[1].line("harmless.over_refusal") is not None
    with pytest.raises(TrivetError, match="can't be told"):
        found.quality("helpful.charm")


def test_an_adapter_is_merged_before_it_is_measured(models, here, tmp_path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(models.source), LoraConfig(
        r=2, target_modules="all-linear", task_type="CAUSAL_LM", init_lora_weights=False))
    model.save_pretrained(tmp_path / "aligned" / "policy")
    out = tmp_path / "run"
    main(["tradeoff", str(tmp_path / "aligned" / "policy"), str(models.same), "--out", str(out), "--speed.rounds", "1",
          *SMALL])
    source = read(out).source
    assert here[0] == "merge" and source.path == str(tmp_path / "aligned" / "policy") and source.name == "aligned"
    assert source.variant.bytes > 0 and not (out / "merged").exists()


def test_every_variant_has_a_process_of_its_own(models, tmp_path) -> None:
    out = tmp_path / "run"
    main(["tradeoff", str(models.source), str(models.near), "--out", str(out), "--speed.rounds", "1", *SMALL])
    found = read(out)
    assert all(row.failed is None and row.timed and row.memory is not None for row in found.rows)
    assert read_json(out.parent / "ledger.jsonl")["cpu_seconds"] > 1
