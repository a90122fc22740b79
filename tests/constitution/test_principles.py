"""Principles in a file: what is refused, what the hash covers, how principles are drawn; the shipped one."""

from __future__ import annotations

from collections import Counter

import pytest
import yaml

from trivet.cli import main
from trivet.constitution.principles import SHIPPED, Constitution, FewShot, Principle, load_constitution
from trivet.errors import TrivetError
from trivet.judge.cases import Case
from trivet.judge.criteria import word
from trivet.text.manner import refuses


def principle(name: str, weight: float = 1.0) -> Principle:
    return Principle(name=name, critique=f"critique {name}", revision=f"revise {name}", preference=f"which? {name}",
                     weight=weight)


def constitution(*weights: float) -> Constitution:
    return Constitution(name="c", principles=[principle(f"p{i}", w) for i, w in enumerate(weights)])


def test_the_shipped_one_is_sound_and_its_own() -> None:
    shipped = load_constitution()
    assert len(shipped.principles) == 16 and len(shipped.few_shot) >= 4
    assert load_constitution(SHIPPED) == shipped
    text = SHIPPED.read_text().casefold()
    for words in ("illegal, unethical or\n      immoral", "thoughtful, respectful and cordial",
                  "peaceful, ethical and wise person", "nothing is wrong"):
        assert words in text
    for p in shipped.principles:  # a judge replies with the letter of one of two answers
        assert "which of the two answers" in p.preference.casefold() and p.preference.endswith("?")
        assert p.revision.startswith(("Write", "If"))
    # a small model copies: no dialogue ends in a bare refusal, and one shows that helping was right
    assert not all(refuses(s.revision) for s in shipped.few_shot)
    assert any(refuses(s.response) and not refuses(s.revision) for s in shipped.few_shot)


def test_the_hash_is_of_the_content(tmp_path) -> None:
    value = yaml.safe_load(SHIPPED.read_text())
    (tmp_path / "same.yaml").write_text("# another comment\n" + yaml.safe_dump(value, sort_keys=True))
    assert load_constitution(tmp_path / "same.yaml").sha256 == load_constitution().sha256
    value["principles"][0]["weight"] = 3
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(value))
    assert load_constitution(tmp_path / "other.yaml").sha256 != load_constitution().sha256


def test_draws_follow_the_weights_and_are_the_same_each_time() -> None:
    c = constitution(1, 2, 5, 0)
    drawn = [c.draw(3, f"item {i}").name for i in range(4000)]
    assert drawn == [c.draw(3, f"item {i}").name for i in range(4000)]
    share = {name: n / len(drawn) for name, n in Counter(drawn).items()}
    assert share.keys() == {"p0", "p1", "p2"}  # weight 0 is never drawn
    for name, wanted in (("p0", 1 / 8), ("p1", 2 / 8), ("p2", 5 / 8)):
        assert abs(share[name] - wanted) < 4 * (wanted * (1 - wanted) / len(drawn)) ** 0.5
    assert drawn != [c.draw(4, f"item {i}").name for i in range(4000)]


def test_an_item_meets_each_principle_before_one_twice() -> None:
    c = constitution(1, 2, 5, 0)
    for item in ("a", "b", "c"):
        names = [c.draw(0, item, r).name for r in range(6)]
        assert sorted(names[:3]) == sorted(names[3:]) == ["p0", "p1", "p2"]
    with pytest.raises(ValueError):
        c.draw(0, "a", -1)


def test_a_new_principle_leaves_the_order_of_the_others() -> None:
    few, more = constitution(1, 1, 1), constitution(1, 1, 1, 1)
    for i in range(50):
        kept = [more.draw(0, str(i), r).name for r in range(4)]
        kept.remove("p3")
        assert kept == [few.draw(0, str(i), r).name for r in range(3)]


def test_few_shot_dialogues_hold_the_requests_of_their_principle() -> None:
    shot = FewShot(principle="p0", prompt="q", response="a", critique="c", revision="r")
    c = Constitution(name="c", principles=[principle("p0")], few_shot=[shot, shot])
    assert [m.content for m in c.shots(1)] == ["q", "a", "critique p0", "c", "revise p0", "r"]
    assert [m.role for m in c.shots(2)] == ["user", "assistant"] * 6
    assert c.shots(0) == [] and c.shots(9) == c.shots(2)


def test_the_question_is_one_that_a_judge_can_be_asked() -> None:
    case = Case("x", (), ("one", "two"), principle("p0").criterion)
    assert "which? p0" in word(case).text and word(case).labels == ("A", "B")


GOOD = """name: mine
principles:
  - name: one
    critique: c
    revision: r
    preference: p
  - name: two
    critique: c
    revision: r
    preference: p
    weight: 2
"""


@pytest.mark.parametrize(("change", "line", "words"), [
    (("name: two", "name: one"), 7, "called 'one'"),
    (("    preference: p\n  - name: two", "  - name: two"), 3, "missing"),
    (("weight: 2", "weight: -2"), 11, "greater than or equal to 0"),
    (("weight: 2", "weigth: 2"), 11, "not known"),
    (("name: one", "name: One thing"), 3, "small letters"),
    (("critique: c", "critique: '  '"), 4, "at least 1 character"),
    (("critique: c", "critique: [c]"), 4, "valid string"),
    (("name: mine", "title: mine"), None, "missing"),
    (("    weight: 2", "few_shot:\n  - {principle: three, prompt: q, response: a, critique: c, revision: r}"), 12,
     "no principle is called 'three'"),
    (("weight: 2", "weight: .inf"), 11, "finite"),
])
def test_what_does_not_fit_is_told_with_its_line(tmp_path, change, line, words) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD.replace(*change, 1))
    with pytest.raises(TrivetError) as caught:
        load_constitution(file)
    assert words in str(caught.value) and caught.value.line == line and caught.value.file == file
    assert "--" not in caught.value.mend  # it is a file, no command line


def test_weights_that_are_all_zero(tmp_path) -> None:
    text = GOOD.replace("weight: 2", "weight: 0").replace("p\n  -", "p\n    weight: 0\n  -")
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(TrivetError, match="weight 0"):
        load_constitution(tmp_path / "c.yaml")


def test_the_command(tmp_path, capsys) -> None:
    copy = tmp_path / "mine.yaml"
    main(["constitution", "show", "--out", str(copy)])
    assert copy.read_text() == SHIPPED.read_text()
    main(["constitution", "check", str(copy)])
    told = capsys.readouterr().out
    assert load_constitution().sha256 in told and "16 principles" in told and "less-harmful" in told
    main(["constitution", "show"])
    assert "Which of the two answers" in capsys.readouterr().out
    main(["constitution", "--help"])
    assert "constitution check" in capsys.readouterr().out
    for arguments in (["show", "--out", str(copy)], ["check", str(tmp_path / "none.yaml")], ["chekc"], ["check"]):
        with pytest.raises(SystemExit) as stopped:
            main(["constitution", *arguments])
        assert stopped.value.code == 2
        assert "to mend" in capsys.readouterr().err
