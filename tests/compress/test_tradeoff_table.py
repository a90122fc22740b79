"""The table in words, the sentence that chooses, the picture and the page's part: from a table made by hand."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from trivet.artifacts import write_json
from trivet.compress.choosing import Limits, pick
from trivet.compress.tradeoff_config import TradeoffConfig
from trivet.compress.tradeoff_results import PERPLEXITY, REWARD_KEY, Tradeoff, read
from trivet.compress.tradeoff_table import footnotes, markdown, parts, sentence
from trivet.errors import TrivetError
from trivet.report import tradeoff
from trivet.report.config import ReportConfig
from trivet.report.page import write_report
from weighed import table


@pytest.fixture(scope="module")
def found() -> Tradeoff:
    return table()


def said(found: Tradeoff, by: str, **limits: float) -> str:
    given = Limits(**limits)
    return sentence(found, pick(found.candidates(by), given), given, by)


def test_parts_hold_every_variant_and_say_what_is_not_known(found: Tradeoff) -> None:
    made = {part.title: part for part in parts(found, REWARD_KEY)}
    assert list(made) == ["size and memory", "speed", "helpful", "harmless", "capable"]
    for part in made.values():
        assert [name.removesuffix(" ●") for name, _ in part.rows] == ["source", "int8", "int4", "wanda", "broken"]
        assert all(len(cells) == len(part.heads) for _, cells in part.rows)
    assert made["size and memory"].rows[0][1] == ("538", "32.00", "134.5M", "0.0%", "1,076", "1.50 [1.00, 2.00]")
    speed = dict(made["speed"].rows)
    assert made["speed"].heads == ("first token, ms (128)", "tokens/s (1 × 128)", "× source", "tokens/s (16 × 128)",
                                   "× source")
    assert speed["broken"] == ("n/a",) * 5 and speed["source ●"][2] == "1" and speed["int8 ●"][2].startswith("4.00")
    front = {name.removesuffix(" ●") for name, _ in made["speed"].rows if name.endswith("●")}
    assert front == {"source", "int8", "int4"}
    assert made["capable"].heads[0] == "perplexity (per token) ↓" and "▼" in dict(made["capable"].rows)["wanda"][0]
    assert dict(made["harmless"].rows)["source ●"] == ("n/a",)


def test_notes_say_why(found: Tradeoff) -> None:
    notes = footnotes(found, REWARD_KEY)
    assert "broken: OpenVINO is not installed." in notes and "int4: KL is n/a: it tells none." in notes
    assert "wanda: Zeros in a dense file." in notes and "A note." in notes
    assert any(n.startswith("● on the Pareto front") and REWARD_KEY in n for n in notes)
    text = markdown(found, REWARD_KEY)
    assert all(note in text for note in notes) and "| int8 ● | 144 |" in text


def test_the_sentence_says_which_and_why(found: Tradeoff) -> None:
    words = said(found, PERPLEXITY, quality=0.05)
    assert words.startswith("Take int8: of the 2 of 5 that keep within a loss of 5.0% more perplexity it is the "
                            "fastest;")
    assert "answers in 1.02 s instead of 4.08 (4.0 times as fast), takes 144 MB instead of 538" in words
    assert re.search(r"is 12\.\d+ instead of 12\.\d+ \(\+0\.\d%? ?\[", words), words
    assert said(found, REWARD_KEY, latency=0.9).startswith(
        "Take int4: it alone of 5 keeps within 0.9 s for an answer of 64 tokens;")
    assert "its reward of answers to held-out prompts is" in said(found, REWARD_KEY, latency=0.9)
    assert said(found, REWARD_KEY, latency=9.0, size=1e9, quality=0.0).startswith("Take source, the source itself")


def test_the_sentence_says_why_none(found: Tradeoff) -> None:
    words = said(found, PERPLEXITY, latency=0.5, quality=0.01)
    assert words.startswith("None of 5 keeps within 0.5 s for an answer of 64 tokens and a loss of 1.0% more perplex")
    assert "source loses the least, 0.0% more perplexity" in words and "int4, the fastest, takes 0.82 s" in words


def test_quality_is_the_reward_else_the_perplexity(found: Tradeoff) -> None:
    assert found.quality() == REWARD_KEY and table(reward=False).quality() == PERPLEXITY
    assert found.quality("capable.kl") == "capable.kl"
    with pytest.raises(TrivetError, match="can't be told by 'nothing'"):
        found.quality("nothing")


@pytest.mark.parametrize("reward", [True, False])
def test_finish_prints_draws_and_chooses(tmp_path: Path, capsys: pytest.CaptureFixture[str], reward: bool) -> None:
    made = table(reward)
    write_json(tmp_path / "tradeoff.json", made.model_dump(mode="json"))
    assert read(tmp_path) == made
    config = TradeoffConfig(out=tmp_path, variants=["x"], max_size="200MB")
    tradeoff.finish(config)
    chosen = json.loads((tmp_path / "pick.json").read_text())
    assert chosen["pick"] == "int8" and chosen["path"] == "runs/int8" and chosen["limits"] == {"size": 2e8}
    assert "trade quality for speed" in capsys.readouterr().out
    picture = (tmp_path / "tradeoff.svg").read_text()
    assert "int4" in picture and "wanda" in picture and ("reward" in picture) == reward
    with pytest.raises(SystemExit) as stopped:
        tradeoff.finish(config.model_copy(update={"max_size": "1MB"}))
    assert stopped.value.code == 1
    tradeoff.finish(config.model_copy(update={"max_size": None}))  # nothing is asked: an old choice goes
    assert not (tmp_path / "pick.json").exists()


def test_the_page_shows_table_and_choice(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "tradeoff"
    folder.mkdir(parents=True)
    write_json(folder / "tradeoff.json", table().model_dump(mode="json"))
    write_json(folder / "summary.json", {"stage": "tradeoff", "seconds": 3.0, "variants": 4, "front": ["int8"],
                                         "artifacts": {}})
    (folder / "config.yaml").write_text("# trivet tradeoff, as resolved\nquality: null\n")
    page = write_report(ReportConfig(run=tmp_path / "run")).read_text()
    assert 'id="tradeoff"' in page and "perplexity (per token) ↓" in page and "n/a" in page
    assert "of 5 worth having" in page
    tradeoff.finish(TradeoffConfig(out=folder, variants=["x"], max_quality_loss=0.05))
    page = write_report(ReportConfig(run=tmp_path / "run")).read_text()
    assert "The variant to serve" in page and "Take int8" in page
