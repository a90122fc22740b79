"""Critique and revision: what is asked, what goes on, what is written, and that nothing is asked twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from constitution.scripted import Bench, Killed, Script
from trivet.artifacts import Message, Preference, Prompt, read_rows
from trivet.cli import main
from trivet.constitution import critique as rounds_module
from trivet.constitution import revise
from trivet.constitution.critique import Item, Rounds, best, critique_turns, revision_turns, weigh
from trivet.constitution.principles import Constitution, Principle, load_constitution
from trivet.constitution.revise_config import Gates, ReviseConfig
from trivet.constitution.traces import Revision, Trace, Tuning
from trivet.data.supervised import read_conversations
from trivet.errors import TrivetError
from trivet.generate.writing import Ask, Written
from trivet.judge.criteria import REFUSES
from trivet.stages import STAGES, run_stage

P = Principle(name="kind", critique="Is anything in it rude or less than kind?", revision="Write it anew, kindly.",
              preference="Which of the two answers is kinder?")
ONE = Constitution(name="one", principles=[P])
FRIENDLY = "You could ask your neighbour whether the two of you might share the garden on Sundays."


def user(text: str) -> Message:
    return Message(role="user", content=text)


def assistant(text: str) -> Message:
    return Message(role="assistant", content=text)


def prompt(id: str = "p", text: str = "How do I get over the fence?", tags: tuple[str, ...] = ()) -> Prompt:
    return Prompt(id=id, messages=[user(text)], tags=list(tags))


def settings(**more) -> ReviseConfig:
    return ReviseConfig(**{"prompts": Path("p.jsonl"), "rounds": 1, "few_shot": 0, **more})


def rounds(reply, config: ReviseConfig, judge=None, constitution: Constitution = ONE) -> tuple[Rounds, list[Ask]]:
    """Rounds whose critic and reviser say `reply(ask)`; and the list of what they are asked."""
    asked: list[Ask] = []

    def write(asks, sampling):
        asked.extend(asks)
        said = [reply(a) for a in asks]
        return [Written(*(s if isinstance(s, tuple) else (s, True)), None) for s in said]

    return Rounds(config, constitution, critic=write, reviser=write, judge=judge), asked


def critique_or(revision: str):
    return lambda ask: "It is rude." if "critique" in ask.id else revision


# --- what is asked ----------------------------------------------------------------------------------------


def test_requests_stand_after_the_conversation_and_dialogues_before_it() -> None:
    talk = [Message(role="system", content="S"), user("a?"), assistant("b"), user("c?")]
    shown = [user("shown"), assistant("too")]
    turns = critique_turns(shown, talk, "d", P)
    assert [(m.role[0], m.content) for m in turns] == [
        ("s", "S"), ("u", "shown"), ("a", "too"), ("u", "a?"), ("a", "b"), ("u", "c?"), ("a", "d"), ("u", P.critique)]
    assert revision_turns(shown, talk, "d", P, "rude") == (*turns, assistant("rude"), user(P.revision))
    assert revision_turns(shown, talk, "d", P, None) == (*turns[:-1], user(P.revision))


def test_each_round_revises_what_the_last_one_left() -> None:
    said = {"revision-1": FRIENDLY, "revision-2": f"{FRIENDLY} And bring a cake, of course.", "revision-3": "no",
            "revision-4": "Talk to them over a cup of tea some afternoon, and ask what would suit them."}
    item = Item(prompt(), Written("Climb it.", True, 3))
    take, asked = rounds(lambda a: "Rude." if "critique" in a.id else (said[a.id.split("/")[1]], a.id[-1] != "3"),
                         settings(rounds=4, gates=Gates(similarity=0.95)))
    for number in range(1, 5):
        take.take([item], number)
    revised = [a.messages[1].content for a in asked if "revision" in a.id]
    # round 3 was cut off, so that round 4 revises what round 2 left
    assert revised == ["Climb it.", FRIENDLY, said["revision-2"], said["revision-2"]]
    assert [r.taken for r in item.rounds] == [0, 0, None, 0] and item.final == said["revision-4"]
    assert item.texts == ["Climb it.", FRIENDLY, said["revision-2"], said["revision-4"]]


def test_without_critiques_and_with_an_empty_one_the_revision_is_asked_for_at_once() -> None:
    for config, reply in ((settings(critiques=False), lambda a: FRIENDLY),
                          (settings(), lambda a: " …" if "critique" in a.id else FRIENDLY)):
        item = Item(prompt(), Written("Climb it.", True, 3))
        take, asked = rounds(reply, config)
        take.take([item], 1)
        assert item.rounds[0].critique is None and item.final == FRIENDLY
        assert [m.content for m in asked[-1].messages] == [item.prompt.messages[0].content, "Climb it.", P.revision]
        assert len(asked) == 1 + config.critiques


def test_openings_begin_the_revisions_in_turn_where_asked_for() -> None:
    said = P.model_copy(update={"openings": ["I won't.", "Please don't."]})
    for chosen, begun in ((True, ["I won't.", "Please don't.", "I won't."]), (False, [""] * 3)):
        take, asked = rounds(critique_or(FRIENDLY), settings(samples=3, openings=chosen),
                             constitution=Constitution(name="one", principles=[said]))
        take.take([Item(prompt(), Written("Climb it.", True, 3))], 1)
        assert [a.begun for a in asked if "revision" in a.id] == begun
        assert all(a.begun == "" for a in asked if "critique" in a.id)
    take, asked = rounds(critique_or(FRIENDLY), settings(openings=True))  # a principle that has none
    take.take([Item(prompt(), Written("Climb it.", True, 3))], 1)
    assert {a.begun for a in asked} == {""}


def test_principles_are_drawn_by_prompt_and_round_and_few_shot_dialogues_are_shown() -> None:
    shipped = load_constitution()
    items = [Item(prompt(f"p{i}"), Written("Climb it.", True, 3)) for i in range(20)]
    take, asked = rounds(critique_or(FRIENDLY), settings(few_shot=1, seed=7), constitution=shipped)
    take.take(items, 1)
    assert [i.rounds[0].principle for i in items] == [shipped.draw(7, i.prompt.id, 0).name for i in items]
    assert len({i.rounds[0].principle for i in items}) > 5
    assert all(list(a.messages[:6]) == shipped.shots(1) for a in asked)


# --- gates in a round -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "ended", "gate"), [
    ("…", True, "empty"), (FRIENDLY, False, "cut_off"), ("no " * 40, True, "broken"), ("climb it!", True, "copy"),
    ("Is anything in it rude or less than kind? Anew!", True, "echo"), ("How do I get over the fence?", True, "echo"),
    ("It is so rude that one would not say it.", True, "echo"), ("My previous answer was rude. Ask.", True,
                                                                "talks_of_itself"),
])
def test_each_gate_stops_a_revision(text, ended, gate) -> None:
    item = Item(prompt(), Written("Climb it.", True, 3))
    take, _ = rounds(lambda a: "It is so rude that one would not say it." if "critique" in a.id else (text, ended),
                     settings())
    take.take([item], 1)
    (revision,) = item.rounds[0].revisions
    assert gate in revision.stopped_by and item.final is None and item.rounds[0].taken is None
    assert set(revision.stopped_by) <= {gate, "broken"}


def test_a_revision_is_held_against_all_earlier_texts() -> None:
    item = Item(prompt(), Written("Climb over it at night with a long ladder.", True, 9))
    take, _ = rounds(lambda a: "Rude." if "critique" in a.id else FRIENDLY if a.id.endswith("1") else
                     "Climb over it at night with a long ladder!", settings(rounds=2))
    take.take([item], 1)
    take.take([item], 2)  # it goes back to the first answer
    assert item.rounds[1].revisions[0].stopped_by == ["copy"] and item.final == FRIENDLY


def test_what_leads_to_a_revision_is_cut_and_kept_in_the_trace() -> None:
    item = Item(prompt(), Written("Climb it.", True, 3))
    take, _ = rounds(critique_or(f"Sure, here is the revised answer:\n\n{FRIENDLY}"), settings())
    take.take([item], 1)
    (revision,) = item.rounds[0].revisions
    assert item.final == FRIENDLY and revision.text == FRIENDLY and revision.written.startswith("Sure")


def test_refusals_by_rule_only_of_safe_prompts_and_only_where_asked_for(monkeypatch) -> None:
    no = Written("I'm sorry, but I can't help with that.", True, 9)
    safe, other = prompt(tags=("fence", "safe")), prompt(tags=("harmless",))

    def stopped(p: Prompt, refusals: str) -> list[str]:
        return weigh(no, p, Gates(refusals=refusals), earlier=["x"], shown=[],
                     safe="safe" in p.tags).stopped_by

    assert stopped(safe, "rule") == ["refusal"] and stopped(other, "rule") == []

    def never(text: str) -> bool:
        raise AssertionError("the rule that measures refusals was asked")

    monkeypatch.setattr("trivet.text.manner.refuses", never)
    assert stopped(safe, "off") == [] == stopped(safe, "judge")


class Likes:
    """Prefers answers by a number each, says that what holds `sorry` refuses, and leans to the first by `lean`."""

    name, grades, symmetric = "likes", True, False

    def __init__(self, worth: dict[str, float], lean: float = 0.0) -> None:
        self.worth, self.lean, self.cases = worth, lean, []

    def __call__(self, cases):
        self.cases += cases
        return [float("sorry" in c.answers[0]) if len(c.answers) == 1 else
                0.5 + self.lean + 0.2 * (self.worth.get(c.answers[0], 0) - self.worth.get(c.answers[1], 0))
                for c in cases]


def test_the_judge_stops_what_it_finds_worse_and_is_asked_by_the_drawn_principle() -> None:
    judge = Likes({"Climb it.": 1.0, FRIENDLY: 0.0}, lean=0.3)
    item = Item(prompt(), Written("Climb it.", True, 3))
    take, _ = rounds(critique_or(FRIENDLY), settings(judge={"by": "likes"}), judge)
    take.take([item], 1)
    (revision,) = item.rounds[0].revisions
    assert revision.better == pytest.approx(0.3) and revision.stopped_by == ["worse"] and item.final is None
    assert (revision.given, revision.swapped) == pytest.approx((0.6, 0.0))  # the lean to the first is taken out
    assert {c.criterion.question for c in judge.cases} == {P.preference} and len(judge.cases) == 2
    # what another gate stops is not shown to a judge
    judge.cases.clear()
    take, _ = rounds(critique_or("climb it"), settings(judge={"by": "likes"}), judge)
    take.take([Item(prompt(), Written("Climb it.", True, 3))], 1)
    assert not judge.cases


def test_the_best_of_several_samples_goes_on() -> None:
    texts = ["Ask them, and bring a cake on Sunday.", FRIENDLY, "Wait for them at the gate and say hello first."]
    item = Item(prompt(), Written("Climb it.", True, 3))
    config = settings(judge={"by": "likes"}, samples=3)
    take, asked = rounds(lambda a: "Rude." if "critique" in a.id else texts[a.number], config,
                         Likes({texts[0]: 0.5, texts[1]: 1.0, texts[2]: -1.0}))
    take.take([item], 1)
    assert item.final == FRIENDLY and [r.stopped_by for r in item.rounds[0].revisions] == [[], [], ["worse"]]
    assert [a.number for a in asked if "revision" in a.id] == [0, 1, 2]
    assert best([Revision(text="a", ended=True, similarity=0, echo=0, stopped_by=["copy"]),
                 Revision(text="b", ended=True, similarity=0, echo=0),
                 Revision(text="c", ended=True, similarity=0, echo=0)]) == 1  # without a judge: the first that passes
    assert best([]) is None


def test_a_judge_may_say_what_refuses() -> None:
    judge = Likes({})
    items = [Item(prompt("h", tags=("safe",)), Written("Climb it.", True, 3)),
             Item(prompt("x"), Written("Climb it.", True, 3))]
    take, _ = rounds(critique_or("I am sorry, but that is nothing that I would talk about."),
                     settings(judge={"by": "likes"}, gates=Gates(refusals="judge")), judge)
    take.take(items, 1)
    assert [i.rounds[0].revisions[0].stopped_by for i in items] == [["refusal"], []]
    assert [c.id for c in judge.cases if c.criterion == REFUSES] == ["h/1/0/refuses"]


# --- the stage --------------------------------------------------------------------------------------------


def revision_text(ask: Ask) -> str:
    """A text of its own for each prompt, round and number."""
    words = ["ask", "wait", "ring", "call", "write", "smile", "bring", "share", "leave", "offer"]
    n = int(ask.id.split("/")[0].removeprefix("p")) if ask.id.startswith("p") else 0
    r = int(ask.id[-1]) if ask.id[-1].isdigit() else 0
    return (f"You might {words[n % 10]} and {words[(n + r) % 10]} in house {n}, since friends of kind {r} would "
            f"{words[(n + 2 * r + 1) % 10]} as well.")


def target(ask: Ask) -> str | tuple[str, bool]:
    if "helpful" in ask.id:
        return "I'm sorry, but I can't help with that." if "/bad" in ask.id else f"Rice takes {ask.number} minutes."
    if "answer" in ask.id:
        return "" if ask.id.startswith("p9/") else f"Take the ladder of house {ask.id} at night and climb over."
    return "That is not kind." if "critique" in ask.id else (revision_text(ask), not ask.id.startswith("p8/"))


@pytest.fixture
def bench(monkeypatch) -> Bench:
    made = Bench(target=Script(target, "target"), critic=Script(target, "critic"))
    monkeypatch.setattr(revise, "make_writer", made)
    monkeypatch.setattr(revise, "check_writer", lambda settings, *, field: None)
    return made


@pytest.fixture
def files(jsonl) -> dict[str, Path]:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello."},
             {"role": "user", "content": "And over the fence?"}]
    fences = [{"id": f"p{i}", "prompt": f"Fence {i}?", "tags": ["fence"]} for i in range(1, 10)]
    dishes = [{"id": i, "prompt": f"How long does {i} cook?"} for i in ("rice", "bad", "egg")]
    return {"prompts": jsonl("p.jsonl", [*fences, {"id": "p10", "messages": turns}]),
            "helpful": jsonl("h.jsonl", dishes)}


def test_the_stage_writes_data_that_sft_reads(bench, files, tmp_path) -> None:
    out = tmp_path / "run"
    summary = run_stage(STAGES["revise"], ReviseConfig(**files, out=out, rounds=2, helpful_share=0.25))
    traces = {t.id: t for t in read_rows(out / "traces.jsonl", Trace)}
    assert len(traces) == 10
    assert traces["p9"].rounds == [] and traces["p9"].final is None  # no first answer
    assert traces["p8"].final is None  # cut off, each time
    dropped = {"p8", "p9"}
    shipped = load_constitution()
    for id, trace in traces.items():
        assert trace.constitution == shipped.sha256 and trace.target == "target" and trace.critic == "target"
        assert [r.principle for r in trace.rounds] == [shipped.draw(0, id, k).name for k in range(len(trace.rounds))]
    rows = read_rows(out / "sft.jsonl", Tuning)
    revised = [r for r in rows if r.source == "revision"]
    assert {r.id.split("/")[0] for r in revised} == set(traces) - dropped
    for row in revised:
        trace = traces[row.id.split("/")[0]]
        assert row.messages == [*trace.messages, assistant(trace.final)] and row.constitution == shipped.sha256
    helpful = [r for r in rows if r.source == "helpful"]
    assert len(helpful) == 3 == summary.helpful  # a quarter of 8 + 2.67; `bad` refuses
    assert {r.messages[0].content for r in helpful} == {"How long does rice cook?", "How long does egg cook?"}
    # what sft reads: of several turns only the last is learned
    assert all(c.last_only for c in read_conversations(out / "sft.jsonl"))
    pairs = read_rows(out / "preferences.jsonl", Preference)
    ordinary = [p for p in pairs if p.source.startswith("revise helpful")]
    pairs = pairs[: len(pairs) - len(ordinary)]
    assert [p.prompt_id for p in pairs] == [t for t in traces if t not in dropped]
    assert all(p.chosen == traces[p.prompt_id].final and p.rejected == traces[p.prompt_id].first for p in pairs)
    assert [(p.prompt, p.chosen) for p in ordinary] == [(r.messages[:-1], r.messages[-1].content) for r in helpful]
    assert {p.prompt_id for p in ordinary} == {"helpful/rice", "helpful/egg"}
    assert {p.rejected for p in ordinary} <= {r.messages[-1].content for r in revised}
    assert summary.revised["value"] == 0.8 and summary.constitution == shipped.sha256
    found = json.loads((out / "revise.json").read_text())
    assert found["gates"]["cut_off"]["value"] == pytest.approx(2 / 18) and found["without_answer"] == 1
    assert found["rounds"][0]["stopped_by"]["cut_off"] == 1
    assert found["helpful"]["stopped_by"]["refusal"] >= 1 and found["helpful"]["wanted"] == 3
    assert found["gates"]["copy"]["value"] == 0 and found["gates"]["copy"]["high"] > 0.05  # none of 18 is not never
    assert found["constitution"]["sha256"] == shipped.sha256
    assert set(summary.artifacts) == {"sft", "preferences", "traces", "results"}


def test_helpful_answers_may_be_longer(bench, files, tmp_path) -> None:
    run_stage(STAGES["revise"], ReviseConfig(**files, out=tmp_path / "run", rounds=1, helpful_tokens=99,
                                             sampling={"max_new_tokens": 7}))
    # answers; critiques; revisions; helpful answers, as often as more are wanted
    lengths = [s.max_new_tokens for s in bench.scripts["target"].samplings]
    assert lengths[:3] == [7, 192, 7] and set(lengths[3:]) == {99}


def test_pairs_of_revisions_alone(bench, files, tmp_path) -> None:
    run_stage(STAGES["revise"], ReviseConfig(**files, out=tmp_path / "run", rounds=2, helpful_pairs=False))
    pairs = read_rows(tmp_path / "run/preferences.jsonl", Preference)
    assert pairs and not any(p.prompt_id.startswith("helpful/") for p in pairs)


def test_all_rounds_may_be_learned_from_and_the_critic_may_be_another(bench, files, tmp_path) -> None:
    config = ReviseConfig(prompts=files["prompts"], out=tmp_path / "run", rounds=2, learn="all",
                          critic={"by": "critic"}, reviser="critic", critique_tokens=7)
    run_stage(STAGES["revise"], config)
    rows = read_rows(tmp_path / "run/sft.jsonl", Tuning)
    assert sorted(r.id for r in rows) == sorted(f"p{i}/{r}" for i in (1, 2, 3, 4, 5, 6, 7, 10) for r in (1, 2))
    assert all("answer" in a.id for a in bench.scripts["target"].asked)
    assert {s.max_new_tokens for s in bench.scripts["critic"].samplings} == {7, 256}


def test_killed_after_any_text_it_goes_on_and_asks_nothing_twice(bench, files, tmp_path) -> None:
    whole = tmp_path / "whole"
    config = ReviseConfig(**files, out=whole, rounds=2, helpful_share=0.25)
    run_stage(STAGES["revise"], config)
    wanted = sorted(bench.asked)
    for stop in range(1, len(wanted), 5):
        out = tmp_path / f"stop{stop}"
        script = Script(target, "target")
        bench.scripts["target"] = script
        for end in (stop, stop + 2, None):
            script.stop_after = end
            if end is None:
                run_stage(STAGES["revise"], config.model_copy(update={"out": out}))
            elif end < len(wanted):
                with pytest.raises(Killed):
                    run_stage(STAGES["revise"], config.model_copy(update={"out": out}))
                assert not (out / "sft.jsonl").exists() and not (out / "summary.json").exists()
        assert sorted(bench.asked) == wanted
        for name in ("traces.jsonl", "sft.jsonl", "preferences.jsonl", "revise.json"):
            assert (out / name).read_bytes() == (whole / name).read_bytes()


def test_too_few_revisions_end_the_stage_with_the_gate_and_examples(bench, files, tmp_path) -> None:
    bench.scripts["target"] = Script(lambda a: f"Take the ladder, {a.id.split('/')[0]}." if "critique" not in a.id
                                     else "Rude.", "target")
    with pytest.raises(TrivetError) as caught:
        run_stage(STAGES["revise"], ReviseConfig(**files, out=tmp_path / "run"))
    said = str(caught.value)
    assert "0 of 10 prompts" in said and "gate `copy` stopped 40 of 40" in said and "Take the ladder, p1." in said
    assert caught.value.field == "gates.survive" and caught.value.file == tmp_path / "run/traces.jsonl"
    assert len(read_rows(tmp_path / "run/traces.jsonl", Trace)) == 10
    assert not (tmp_path / "run/sft.jsonl").exists() and not (tmp_path / "run/summary.json").exists()


def test_answers_without_a_word_end_it_too(bench, files, tmp_path) -> None:
    bench.scripts["target"] = Script(lambda a: " ", "target")
    with pytest.raises(TrivetError, match="10 prompts got an answer without a letter"):
        run_stage(STAGES["revise"], ReviseConfig(**files, out=tmp_path / "run", gates=Gates(survive=0)))


def test_another_constitution_makes_another_run_and_its_copy_does_not(bench, files, tmp_path) -> None:
    out = tmp_path / "run"
    run_stage(STAGES["revise"], ReviseConfig(**files, out=out, rounds=1))
    copy = tmp_path / "copy.yaml"
    main(["constitution", "show", "--out", str(copy)])
    copy.write_text("# mine\n" + copy.read_text())
    n = len(bench.asked)
    run_stage(STAGES["revise"], ReviseConfig(**files, out=out, rounds=1, constitution=copy))
    assert len(bench.asked) == n
    copy.write_text(copy.read_text().replace("weight: 2", "weight: 3", 1))
    with pytest.raises(TrivetError, match="other settings or inputs"):
        run_stage(STAGES["revise"], ReviseConfig(**files, out=out, rounds=1, constitution=copy))


def test_a_judge_that_only_compares_cannot_say_what_refuses(bench, files, tmp_path, monkeypatch) -> None:
    class Compares(Likes):
        grades = False

    monkeypatch.setattr(revise, "check", lambda settings: None)
    monkeypatch.setattr(revise, "make_judge", lambda *a, **k: Compares({}))
    with pytest.raises(TrivetError, match="compares answers") as caught:
        run_stage(STAGES["revise"], ReviseConfig(**files, out=tmp_path / "run", judge={"by": "reward"},
                                                 gates=Gates(refusals="judge")))
    assert caught.value.field == "gates.refusals" and not bench.asked


def test_position_bias_and_flips_of_the_judge_are_told(bench, files, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(revise, "check", lambda settings: None)
    monkeypatch.setattr(revise, "make_judge", lambda *a, **k: Likes({}, lean=0.25))
    run_stage(STAGES["revise"], ReviseConfig(prompts=files["prompts"], out=tmp_path / "run", rounds=1,
                                             judge={"by": "likes"}))
    judged = json.loads((tmp_path / "run/revise.json").read_text())["judged"]
    assert judged["asked"] == 8 and judged["better"]["value"] == 0.5
    assert judged["prefers_first"]["value"] == 0.75 and judged["flips"]["value"] == 1.0


def test_the_table_and_the_command(bench, files, tmp_path, capsys) -> None:
    main(["constitution", "revise", "--prompts", str(files["prompts"]), "--out", str(tmp_path / "run"), "--rounds",
          "2"])
    said = capsys.readouterr().out
    assert "round 2 of 2: 8 of 9 prompts have a new revision" in said
    assert "talks_of_itself" in said and "stopped" in said and "passed" in said


@pytest.mark.parametrize(("more", "words"), [
    (["--reviser", "critic"], "name the critic"),
    (["--gates.refusals", "judge"], "no judge to ask"),
    (["--no-critiques", "--critic.by", "x"], "nothing to do without critiques"),
    (["--openings", "--target.by", "http://127.0.0.1:1/v1", "--target.model", "m"], "must be a local model"),
])
def test_settings_that_do_not_go_together(files, tmp_path, more, words, capsys) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["constitution", "revise", "--prompts", str(files["prompts"]), "--out", str(tmp_path / "run"), *more])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_tiny_random_model_by_the_real_road(files, tiny_model_folder, tmp_path) -> None:
    """It speaks gibberish and never ends: told with the gate, its texts kept as evidence."""
    with pytest.raises(TrivetError, match="stopped") as caught:
        run_stage(STAGES["revise"], ReviseConfig(
            prompts=files["prompts"], out=tmp_path / "run", target={"by": str(tiny_model_folder)}, few_shot=0, limit=3,
            rounds=1, constitution=_short(tmp_path), critique_tokens=8,
            sampling={"temperature": 1.0, "max_new_tokens": 8}, device={"threads": 1}))
    assert caught.value.field == "gates.survive"
    assert len(read_rows(tmp_path / "run/traces.jsonl", Trace)) == 3


def _short(folder: Path) -> Path:
    """Principles that a context of 256 bytes has room for."""
    path = folder / "short.yaml"
    path.write_text("name: short\nprinciples:\n"
                    "  - {name: kind, critique: 'Rude?', revision: Anew., preference: 'Kinder?'}\n")
    return path


def test_rounds_need_no_rule_of_refusal_on_import() -> None:
    """What measures refusals afterwards is not at hand where it is not asked for."""
    assert not hasattr(rounds_module, "refuses") and not hasattr(revise, "refuses")
