"""The report page, from small run folders written by hand: no model, no training."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trivet.errors import TrivetError
from trivet.report import plots, read
from trivet.report.config import ReportConfig
from trivet.report.page import write_report
from trivet.report.words import duration, number

HOSTILE = "<script>alert('x')</script><img src=x onerror=y> & \u202e\x1b[31m \ud800 https://evil.example/a.js"
PROMPTS = 15


def interval(value: float, low: float | None, high: float | None, n: int = PROMPTS) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": n}


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def stage(folder: Path, kind: str, config: str, summary: dict[str, Any] | None, seconds: float = 61.0) -> None:
    """What `runs.execute` leaves in a stage's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(f"# trivet {kind}, as resolved\n{config}", encoding="utf-8")
    (folder / ".state.json").write_text(json.dumps(
        {"stage": kind, "fingerprint": "f" * 64, "seconds": seconds, "attempts": 1}))
    if summary is None:
        return
    (folder / "summary.json").write_text(json.dumps(
        {"schema_version": 1, "stage": kind, "fingerprint": "f" * 64, "seconds": seconds, "artifacts": {}} | summary))
    entry = {"schema_version": 1, "name": folder.name, "stage": kind, "started": "2026-01-02T03:04:05Z",
             "seconds": seconds, "cpu_seconds": 100.0, "peak_memory_bytes": 2**30, "tokens": {"generated": 1234},
             "attempts": 1, "machine": "a small machine, 2 cores"}
    with (folder.parent / "ledger.jsonl").open("a") as file:
        file.write(json.dumps(entry) + "\n")


def ppo_stage(folder: Path, *, gain=(0.8, 0.3, 1.3), second: tuple[float, float, float] | None = (0.4, 0.1, 0.7),
              length=(1.0, -2.0, 4.0), kl=4.2, budget: float | None = 10.0, done: bool = True,
              hostile: bool = False) -> None:
    look = f"{folder.parent}/second/reward" if second else "null"
    config = (f"reward: ['{folder.parent}/reward/reward']\nnormalise: true\nsampling: {{max_new_tokens: 48}}\n"
              f"stop: {{steps: 4, kl: {budget or 'null'}}}\nkl: {{adaptive: false, target: 6.0}}\n"
              f"evaluation: {{reward: {look}}}\n")
    summary: dict[str, Any] = {
        "stop": "steps", "steps": 4, "episodes": 64, "kl": kl, "reward_before": interval(0.01, -0.1, 0.1),
        "reward_after": interval(0.01 + gain[0], 0.5, 1.1), "reward_gain": interval(*gain),
        "length_before": interval(40.0, 38, 42), "length_after": interval(40 + length[0], 38, 44),
        "length_gain": interval(*length), "tokens_per_second": {"rollout": 900.0}}
    if second:
        summary |= {"second_reward_before": interval(0, -0.1, 0.1), "second_reward_after": interval(second[0], 0, 1),
                    "second_reward_gain": interval(*second)}
    stage(folder, "ppo", config, summary if done else None)
    lines(folder / "metrics.jsonl", [
        {"step": s, "score": 0.2 * s, "kl": 1.0 * s, "kl_coef": 0.05, "length": 40.0, "ended": 0.5,
         "clip_fraction": 0.1, "entropy": 2.0, "ratio_first": 0.0} for s in range(1, 5)])
    lines(folder / "timing.jsonl", [
        {"step": s, "tokens": 640, "rollout": 8.0, "scoring": 1.0, "evaluate": 2.0, "update": 4.0}
        for s in range(1, 5)])
    for step in (0, 4) if done else (0, 2):
        lines(folder / "evaluations" / f"step-{step:05d}.jsonl", [
            {"schema_version": 1, "id": f"q/{i}/{j}", "step": step,
             "messages": [{"role": "user", "content": f"Question {i}?"}],
             "completion": (HOSTILE if hostile else f"answer {i} at {step}"), "score": 0.1 * step * (i - 4),
             "second": 0.1 * step if second else None, "kl": 0.5 * step, "tokens": 40 + step, "ended": bool(i % 2)}
            for i in range(PROMPTS) for j in range(2)])


def reward_stage(folder: Path, accuracy=(0.67, 0.6, 0.74), over=(0.1, 0.02, 0.18)) -> None:
    stage(folder, "reward", f"preferences: {folder}/pairs.jsonl\n", {
        "artifacts": {"reward": {"path": "reward", "sha256": "0"}}, "steps": 9, "accuracy": interval(*accuracy),
        "longer_wins": interval(0.57, 0.5, 0.63), "shorter_wins": interval(0.43, 0.37, 0.5),
        "accuracy_minus_length_baseline": interval(*over), "length_controlled_accuracy": interval(0.64, 0.55, 0.72),
        "expected_calibration_error": 0.081, "reference_mean": 0.5, "reference_std": 1.2})
    (folder / "reward").mkdir()
    (folder / "reward" / "calibration.json").write_text(json.dumps(
        {"mean": 0.5, "std": 1.2, "reference_scores": [-1.0, 0.0, 0.4, 0.9, 2.2]}))
    (folder / "evaluation.json").write_text(json.dumps({"reliability": [
        {"low": 0.5, "high": 0.75, "count": 20, "confidence": 0.6, "accuracy": 0.55},
        {"low": 0.75, "high": 1.0, "count": 0, "confidence": None, "accuracy": None}]}))
    lines(folder / "metrics.jsonl", [{"step": s, "loss": 0.7 - 0.01 * s, "epoch": s / 9} for s in range(1, 10)])
    who = folder.name
    lines(folder / "pairs.jsonl", [{"prompt": [{"role": "user", "content": f"{who} {i}"}]} for i in range(5)])


def demo(folder: Path, **ppo: Any) -> Path:
    stage(folder / "check", "check", "model: tiny\n", {
        "capable": True, "share_failed": 0.1, "answers": 1, "reasons": {"looping": 1},
        "artifacts": {"evidence": {"path": "evidence.jsonl", "sha256": "0"}}})
    lines(folder / "check" / "evidence.jsonl", [{"id": "a", "prompt": "Say hi", "answer": "hi hi hi",
                                                 "reasons": ["looping"]}])
    reward_stage(folder / "reward")
    reward_stage(folder / "second")
    ppo_stage(folder / "ppo", **ppo)
    if ppo.get("done", True):
        names = {"check": "check", "reward": "reward", "second": "reward", "ppo": "ppo"}
        (folder / "summary.json").write_text(json.dumps({"schema_version": 1, "steps": names}))
    return folder


class Page(HTMLParser):
    """A page's text, its tags with their attributes, and whether every tag is closed."""

    VOID = {"meta", "br", "img", "link", "hr", "input"}

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.parts, self.tags, self.open = html, [], [], []
        self.feed(html)
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.parts).split())

    def handle_starttag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: Any) -> None:
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in {"style", "script"}:
            self.parts.append(data)


def page(folder: Path) -> Page:
    return Page(write_report(ReportConfig(run=folder)).read_text(encoding="utf-8"))


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of words: drawing takes most of a page's time."""
    monkeypatch.setattr(plots, "svg", lambda figure, name, alt: "<svg></svg>")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return page(demo(tmp_path_factory.mktemp("run") / "demo"))


def test_headline_says_gain_second_distance_length_accuracy_and_time(full: Page) -> None:
    for words in (
        "Reward on held-out prompts rose by 0.80 deviations (95% interval 0.30 to 1.30)",
        "A second reward model, which the policy was not trained on, agrees: +0.40 (95% interval 0.10 to 0.70)",
        "By a reward model trained on other prompts", "4.20 nats", "Within the budget of 10 nats",
        "40.0 → 41.0 tokens", "No clear change in length (the interval includes zero): +1.0 tokens",
        "Right on 67% of held-out pairs (95% interval 60% to 74%)", "“the longer wins”: 57%", "4 min 4 s",
    ):
        assert words in full.text, words
    assert "no proof" in full.text  # the gain by the reward it was trained on is not praised
    assert ("p", {"class": "lead good"}) in full.tags


def test_sections_tables_and_plots_are_there(full: Page) -> None:
    for words in ("Reward against √KL", "Reliability", "Accuracy beside rules by length", "Scores of the reference",
                  "Before and after", "Clip fraction", "generated 1,234", "a small machine, 2 cores", "everything else",
                  "share failed", "hi hi hi", "trivet ppo --config", "# trivet ppo, as resolved", "f" * 64):
        assert words in full.text, words
    # 4 steps × 640 tokens in 32 s of rollout, in 16 s of update
    assert re.search(r"rollout 32\.0 s 52% 80\b", full.text) and re.search(r"update 16\.0 s 26% 160\b", full.text)
    drawn = [a for t, a in full.tags if t == "svg"]
    assert len(drawn) >= 16 and all(a["role"] == "img" and a["aria-label"] for a in drawn)
    assert full.html.startswith("<!doctype html>") and "prefers-color-scheme: dark" in full.html


def test_page_is_one_file_with_no_resources_from_elsewhere(full: Page) -> None:
    allowed = re.compile(r"#[\w.-]+$")
    for tag, attributes in full.tags:
        assert tag not in {"script", "link", "iframe", "object", "img"}, tag
        for key in ("src", "href", "xlink:href", "srcset", "data", "poster"):
            assert allowed.match(attributes.get(key) or "#x"), (tag, attributes)
        assert not any(k.startswith("on") for k in attributes)
    assert "://" not in full.html and "@import" not in full.html
    assert all(m.startswith("#") for m in re.findall(r"url\(([^)]*)\)", full.html))


def test_ids_are_unique_and_referred_to(full: Page) -> None:
    ids = [a["id"] for _, a in full.tags if "id" in a]
    assert len(ids) == len(set(ids))
    used = {a["href"][1:] for _, a in full.tags if "href" in a} | set(re.findall(r"url\(#([^)]*)\)", full.html))
    assert used <= set(ids)


def test_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo")
    first = write_report(ReportConfig(run=folder)).read_bytes()
    other = tmp_path / "elsewhere" / "page.html"
    assert write_report(ReportConfig(run=folder, out=other)) == other
    assert other.read_bytes() == first
    assert [p.name for p in other.parent.iterdir()] == ["page.html"]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("ppo", "words", "tone"), [
    ({"gain": (0.1, -0.2, 0.4)}, "No clear change: reward on held-out prompts moved by +0.10 deviations (95% interval "
     "−0.20 to 0.40), and this interval includes zero", "caution"),
    ({"gain": (-0.5, -0.9, -0.1)}, "It got worse: reward on held-out prompts fell by 0.50 deviations", "caution"),
    ({"second": (0.1, -0.1, 0.3)}, "does not confirm it: +0.10 (95% interval −0.10 to 0.30), an interval that "
     "includes zero", "caution"),
    ({"second": (-0.1, -0.3, 0.1)}, "points the other way: −0.10", "caution"),
    ({"second": (-0.4, -0.6, -0.2)}, "says the opposite: −0.40", "caution"),
    ({"second": None}, "by itself this does not show that the answers got better", "caution"),
    ({"kl": 12.0}, "Over the budget of 10 nats", "good"),
    ({"budget": None}, "No budget was set", "good"),
    ({"length": (6.0, 3.0, 9.0)}, "the longer answer wins in 57%: a part of the gain may be length alone", "good"),
])
def test_headline_is_plain_about_what_it_does_not_show(tmp_path: Path, ppo: dict, words: str, tone: str) -> None:
    found = page(demo(tmp_path / "demo", **ppo))
    assert words in found.text
    assert ("p", {"class": f"lead {tone}"}) in found.tags


@pytest.mark.usefixtures("undrawn")
def test_second_reward_that_it_was_trained_on_is_no_second_opinion(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo")
    config = folder / "ppo" / "config.yaml"
    config.write_text(config.read_text().replace("/second/reward", "/reward/reward"))
    found = page(folder)
    assert "The second reward is one it was trained on" in found.text and "agrees" not in found.text


@pytest.mark.usefixtures("undrawn")
def test_reward_models_that_share_prompts_are_not_called_apart(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo")
    (folder / "second" / "pairs.jsonl").write_bytes((folder / "reward" / "pairs.jsonl").read_bytes())
    found = page(folder)
    assert "5 of its training prompts are the first one's, too" in found.text
    assert "trained on other prompts" not in found.text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("reward", "ours"), [("runs/was/reward/reward", True), ("runs/other/reward/reward", False)])
def test_reward_models_are_found_after_a_move_and_not_confused(tmp_path: Path, reward: str, ours: bool) -> None:
    folder = demo(tmp_path / "demo")
    config = folder / "ppo" / "config.yaml"
    config.write_text(config.read_text().replace(f"{folder}/reward/reward", reward) + "out: runs/was/ppo\n")
    found = page(folder).text
    assert ("Trains the policy." in found) is ours and ("trained on other prompts" in found) is ours


@pytest.mark.usefixtures("undrawn")
def test_reward_model_no_better_than_length_or_a_coin_is_said(tmp_path: Path) -> None:
    reward_stage(tmp_path / "reward", accuracy=(0.55, 0.47, 0.63), over=(-0.02, -0.1, 0.06))
    text = page(tmp_path / "reward").text
    assert "not clearly better than that rule" in text and "can't be told from a coin" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("alpha", "words"), [((0.88, 0.85, 0.91), "as good as one labeler"),
                                              ((0.41, 0.3, 0.5), "mend the prompts or the instructions")])
def test_agreement_of_labelers_stands_beside_the_reward_model(tmp_path: Path, alpha: tuple, words: str) -> None:
    folder = tmp_path / "demo"
    stage(folder / "pairs", "pairs", "input: r.jsonl\n", {"pairs": 9, "agreement": {
        "items": 9, "rankings": 27, "labelers": 3, "alpha": interval(*alpha),
        "leave_one_out": interval(0.92, 0.9, 0.94)}})
    reward_stage(folder / "reward")
    text = page(folder).text
    assert "Agreement of labelers" in text and f"α {alpha[0]}" in text and words in text
    assert "on 92% of pairs" in text and "the best one here reaches 67%" in text


def test_hostile_text_is_shown_not_run(tmp_path: Path) -> None:
    folder = demo(tmp_path / "a <b>$x$ & y", hostile=True)
    (folder / "ppo").rename(folder / 'p"po <i>')
    found = page(folder)
    assert "<script" not in found.html and "<img" not in found.html and "<i>p" not in found.html
    assert "<script>alert('x')</script>" in found.text
    assert "␛[31m" in found.text and "\x1b" not in found.html and "a <b>$x$ & y" in found.text


def test_answers_are_spread_over_the_ranking(full: Page, tmp_path: Path) -> None:
    assert read.spread(100, 12) == [0, 9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99]
    assert read.spread(5, 12) == [0, 1, 2, 3, 4]
    assert "Shown are 12 of 15" in full.text and "The other 3" in full.text
    ranks = [int(n) for n in re.findall(r"(\d+) of 15 · gain", full.text)]
    assert ranks[0] == 1 and ranks[11] == 15 and sorted(ranks) == list(range(1, 16))
    first = full.text.index("1 of 15 · gain +4.00 q/14")  # the largest rise: 0.4 × (14 - 4)
    assert first < full.text.index("answer 14 at 0") < full.text.index("answer 14 at 4")


@pytest.mark.usefixtures("undrawn")
def test_unfinished_run_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo", done=False)
    with (folder / "ppo" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "sco')  # killed in the middle of a line
    stage(folder / "ppo2", "ppo", "stop: {steps: 7}\n", None, seconds=0.0)
    found = page(folder)
    assert "So far, after 2 steps. Reward on held-out prompts rose by" in found.text
    assert "The stage ppo has no summary yet: step 4 of at most 4" in found.text
    assert "no step is logged yet" in found.text and found.text.count("(not finished)") == 2


@pytest.mark.usefixtures("undrawn")
def test_unfinished_reward_stage_alone(tmp_path: Path) -> None:
    stage(tmp_path / "reward", "reward", "epochs: 3.0\n", None)
    lines(tmp_path / "reward" / "metrics.jsonl", [{"step": 4, "loss": 0.6, "epoch": 1.5}])
    assert "Not finished: step 4, epoch 1.5 of 3" in page(tmp_path / "reward").text


@pytest.mark.usefixtures("undrawn")
def test_stages_run_one_by_one_are_no_finished_run(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo")
    (folder / "summary.json").unlink()
    found = page(folder)
    assert "the stages were run one by one" in found.text
    assert "check reward second ppo" in found.text  # the ledger's order


@pytest.mark.usefixtures("undrawn")
def test_single_stage_folder(tmp_path: Path) -> None:
    ppo_stage(tmp_path / "my-ppo", second=None)
    found = page(tmp_path / "my-ppo")
    assert (tmp_path / "my-ppo" / "report.html").is_file()
    assert "report of one stage" in found.text and "rose by 0.80 deviations" in found.text
    assert "1.00 GiB" in found.text  # its line of the ledger beside it


@pytest.mark.usefixtures("undrawn")
def test_figures_that_could_not_be_computed(tmp_path: Path) -> None:
    folder = demo(tmp_path / "demo")
    for name, changes in (("reward", {"length_controlled_accuracy": interval(None, None, None, 0)}),
                          ("second", {"accuracy": None, "longer_wins": None, "shorter_wins": None}),
                          ("ppo", {"reward_gain": interval(0.8, None, None, 1)})):
        path = folder / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    text = page(folder).text
    assert "no interval: it rests on one prompt" in text
    assert "No held-out pairs were given" in text


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("make", ["absent", "empty", "file", "other"])
def test_folder_that_holds_no_run_is_refused(tmp_path: Path, make: str) -> None:
    path = tmp_path / "x"
    if make == "file":
        path.write_text("no run")
    elif make != "absent":
        (path / "a").mkdir(parents=True)
        if make == "other":
            (path / "a" / "notes.txt").write_text("hello")
            (path / "a" / "config.yaml").write_text("not: ours\n")
    with pytest.raises(TrivetError) as error:
        write_report(ReportConfig(run=path))
    assert error.value.mend and error.value.file == path
    assert not (path / "report.html").exists()


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(("file", "text"), [
    ("metrics.jsonl", '{"step": 1}\nnot json\n{"step": 2}\n'), ("evaluations/step-00000.jsonl", '{"id": "a/0"}\n'),
    ("config.yaml", "a: [\n"), ("summary.json", "{"),
])
def test_damaged_files_are_named(tmp_path: Path, file: str, text: str) -> None:
    ppo_stage(tmp_path / "ppo")
    (tmp_path / "ppo" / file).write_text(text)
    with pytest.raises(TrivetError) as error:
        write_report(ReportConfig(run=tmp_path / "ppo"))
    assert Path(str(error.value.file)).name == Path(file).name


def test_plots_leave_settings_alone_and_no_pyplot() -> None:
    import subprocess
    import sys

    import matplotlib

    before = dict(matplotlib.rcParams)
    svg = plots.svg(plots.durations([("a <b> $c$ 漢", 1.0, True)]), "a b", 'say "this" <b>')
    assert dict(matplotlib.rcParams) == before
    assert "a &lt;b&gt; $c$ 漢" in svg and "<b>" not in svg and "var(--first)" in svg and "#a1b2" not in svg
    code = "import sys, trivet.report.page; sys.exit(bool({'torch', 'matplotlib', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_figures_in_words() -> None:
    assert [number(x) for x in (-0.5, 0.0, -0.001, 1234.5, None, 3, True)] == [
        "−0.50", "0.00", "0.00", "1,234.50", "–", "3", "yes"]
    assert number(0.5, sign=True) == "+0.50"
    assert [duration(s) for s in (0.0123, 1.46, 59.97, 254, 7500)] == [
        "12.3 ms", "1.5 s", "1 min 0 s", "4 min 14 s", "2 h 5 min"]
