"""The labeler's way over plain forms, as a browser without a script would go it."""

from __future__ import annotations

import re

import pytest

from feedback.labelling.visitor import Visitor, item, shown_texts
from trivet.feedback.labelling.item import Given, drift_words, file_order, letter, read_form, search_link
from trivet.feedback.labelling.pages import order_words, own_path
from trivet.feedback.store import Drift, Invalid, ProjectSettings


def test_invitation_to_ranking(app, filled, visitor) -> None:
    """An invited person chooses name and password, is signed in, ranks with a tie and an F; the store has it."""
    token = filled.invite("labeler", by=None)
    new = visitor()
    assert "You have been invited" in new.get(f"/invite/{token}").text
    answer = new.post(f"/invite/{token}", {"name": "Dee", "password": "pass word 1", "again": "pass word 2"})
    assert answer.status_code == 422 and "not the same" in answer.text
    answer = new.post(f"/invite/{token}", {"name": "Dee", "password": "pass word 1", "again": "pass word 1"})
    assert answer.status_code == 200 and answer.url.path == "/label"
    assert new.get(f"/invite/{token}").status_code == 404, "an invitation works once"
    new.get("/label")
    user = next(u for u in filled.users() if u.name == "Dee")
    given = filled.assignment(new.assignment_id(), user.id)
    assert given is not None
    texts = re.findall(r"<p>(answer-\d-\d)</p>", new.page)
    assert texts == shown_texts(given), "the page shows the stored order"
    assert new.rank("2", "1", "2", "F", note="  close  ", seconds="12.5").url.path == "/label"
    (judgment,) = filled.history(user.id)
    by_text = dict(zip(texts, [2, 1, 2, None]))
    assert judgment.ranks == [by_text[c.text] for c in given.completions]
    assert (judgment.note, judgment.seconds) == ("close", 12.5)


def test_the_page_is_blind(filled, visitor) -> None:
    page = visitor("Bo").get("/label").text
    for secret in ("secret-model", "secret0", "temperature", "p0/"):
        assert secret not in page


def test_orders_differ_by_labeler(store, visitor, ids) -> None:
    store.add_completions([item(n, 6) for n in range(2)])
    orders = []
    for name in ("Bo", "Cy"):
        one = visitor(name)
        one.get("/label")
        found = store.assignment(one.assignment_id(), ids[name])
        assert found is not None
        orders.append((found.item_id, tuple(found.shown_order)))
    assert orders[0] != orders[1]


def test_an_unfinished_form_comes_back_filled(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    answer = bo.rank("1", "", "F", "", note="still thinking")
    assert answer.status_code == 422 and "no rank yet for answers B, D" in answer.text.replace("No", "no")
    assert "still thinking" in answer.text
    checked = re.findall(r'name="rank-(\d)" value="(\w)"[^>]* checked', answer.text)
    assert checked == [("0", "1"), ("2", "F")]
    assert filled.history(ids["Bo"]) == []


def test_undo_gives_the_item_back(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    first = bo.assignment_id()
    bo.rank("1", "2", "3", "4")
    assert bo.assignment_id() != first
    answer = bo.post("/undo")
    assert answer.url.path == f"/label/{first}" and "Taken back" in answer.text
    assert filled.history(ids["Bo"]) == []
    bo.rank("4", "3", "2", "1")
    assert len(filled.history(ids["Bo"])) == 1
    other = visitor("Cy")
    other.get("/label")
    assert "nothing to take back" in other.post("/undo").text


def test_my_answers_and_their_change(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    mine = bo.assignment_id()
    bo.rank("1", "2", "2", "F")
    assert "A &gt; B = C, F: D" in bo.get("/mine").text
    page = bo.get(f"/label/{mine}").text
    assert re.findall(r'name="rank-(\d)" value="(\w)"[^>]* checked', page) == [
        ("0", "1"), ("1", "2"), ("2", "2"), ("3", "F")]
    assert bo.rank("4", "3", "2", "1").url.path == "/mine"
    (current,) = filled.history(ids["Bo"])
    found = filled.assignment(mine, ids["Bo"])
    assert found is not None and [current.ranks[p] for p in found.shown_order] == [4, 3, 2, 1]
    assert current.supersedes is not None


def test_skip_wants_a_reason(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    first = bo.assignment_id()
    assert bo.post(f"/label/{first}/skip").status_code == 422
    assert bo.assignment_id() == first
    bo.post(f"/label/{first}/skip", {"reason": "The content upsets me", "reason_text": "blood"})
    assert bo.assignment_id() != first
    (row,) = filled.history(ids["Bo"])
    assert (row.kind, row.reason) == ("skip", "The content upsets me; blood")
    assert "skipped: The content upsets me; blood" in bo.get("/mine").text


def test_sending_twice_saves_once(filled, visitor, ids) -> None:
    """What a script does after a lost answer, and a person with the reload key."""
    bo = visitor("Bo")
    bo.get("/label")
    path, data = f"/label/{bo.assignment_id()}", bo.hidden | {f"rank-{i}": "1" for i in range(4)}
    for _ in range(2):
        answer = bo.client.post(path, data=data, headers={"Accept": "application/json"})
        assert answer.json() == {"next": "/label?notice=saved"}
    assert len(filled.history(ids["Bo"])) == 1


def test_a_reload_of_a_finished_item_is_no_second_judgment(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    form, path = bo.hidden, f"/label/{bo.assignment_id()}"
    ranks = {f"rank-{i}": "1" for i in range(4)}
    bo.client.post(path, data=form | ranks)
    bo.client.post(path, data=form | ranks)
    (row,) = filled.history(ids["Bo"])
    assert row.supersedes is None


def test_the_script_is_told_what_is_wrong(filled, visitor) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    answer = bo.client.post(f"/label/{bo.assignment_id()}", data=bo.hidden | {"rank-0": "9"},
                            headers={"Accept": "application/json"})
    assert answer.status_code == 422 and "no rank for answer A" in answer.json()["error"]
    bo.client.cookies.delete("trivet_session")
    answer = bo.client.post("/undo", data=bo.hidden, headers={"Accept": "application/json"})
    assert answer.status_code in {401, 403}


def test_when_others_were_faster(store, visitor, ids) -> None:
    """A lease that ended and whose item is full: told kindly, not an error."""
    store.add_completions([item(0)])
    store.change_settings(None, overlap=1)
    bo, cy = visitor("Bo"), visitor("Cy")
    bo.get("/label")
    found = store.assignment(bo.assignment_id(), ids["Bo"])
    assert found is not None
    store.reassign(found.item_id, None, ids["Cy"])
    cy.get("/label")
    cy.rank("1", "2", "3", "4")
    answer = bo.rank("1", "2", "3", "4")
    assert answer.status_code == 200 and "does not need your answer" in answer.text
    assert store.history(ids["Bo"]) == []


def test_nothing_to_do_is_said(store, visitor, ids) -> None:
    bo = visitor("Bo")
    assert "Nothing to rank yet" in bo.get("/label").text
    store.add_completions([item(0)])
    store.change_settings(None, paused=True)
    assert "The project is paused" in bo.get("/label").text
    store.change_settings(None, paused=False, overlap=1)
    store.pause_user(ids["Bo"], True, None)
    assert "Your account is paused" in bo.get("/label").text
    store.pause_user(ids["Bo"], False, None)
    bo.get("/label")
    assert "All done" in bo.rank("1", "1", "1", "F").text


def test_instructions_progress_search_in_view(store, visitor) -> None:
    store.add_completions([item(0, prompt="Is 1 & 1 = 2?")])
    store.change_settings(None, search_url="https://find.example/s?q={query}&x=1", instructions="Be **kind**.")
    page = visitor("Bo").get("/label").text
    assert "Be <strong>kind</strong>." in page
    assert 'href="https://find.example/s?q=Is+1+%26+1+%3D+2%3F&amp;x=1"' in page
    assert 'rel="noopener noreferrer nofollow"' in page
    assert "0 of 3 judgments" in page
    store.change_settings(None, search_url="")
    assert "Search the web" not in visitor("Bo").get("/label").text


def test_ratings_only_where_asked(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    assert 'name="honest-0"' not in bo.get("/label").text
    filled.change_settings(None, ask_ratings=True)
    assert 'name="honest-0"' in bo.get("/label").text
    mine = bo.assignment_id()
    bo.rank("1", "2", "3", "4", **{"honest-1": "5", "harmless-1": "2"})
    (row,) = filled.history(ids["Bo"])
    found = filled.assignment(mine, ids["Bo"])
    assert found is not None and row.ratings == {found.shown_order[1]: {"honest": 5, "harmless": 2}}


def test_drift_is_shown(filled, visitor, ids) -> None:
    filled.add_completions([item(n) for n in range(10, 30)])
    for n in range(12):
        found = filled.next_assignment(ids["Bo"])
        assert found is not None
        filled.submit(found.id, ids["Bo"], [1, 1, 1, 1], seconds=9.0, request_id=f"r{n}")
    assert "Use ties sparingly: 100% of the pairs" in visitor("Bo").get("/label").text
    assert "Use ties sparingly" not in visitor("Cy").get("/label").text


@pytest.mark.parametrize(("drift", "told"), [
    (Drift(9, 1.0, 1.0, 900, 0.1, 60.0), []),
    (Drift(20, 0.1, 50.0, 900, 0.1, 60.0), []),
    (Drift(20, 0.26, 50.0, 900, 0.1, 60.0), ["ties"]),
    (Drift(20, 0.4, 50.0, 900, 0.35, 60.0), []),
    (Drift(20, 0.0, 20.0, 900, 0.1, 60.0), ["Read every answer"]),
    (Drift(20, 0.9, 2.0, 20, 0.9, 2.0), ["ties"]),
    (Drift(20, None, None, 20, None, None), []),
])
def test_drift_words(drift: Drift, told: list[str]) -> None:
    words = drift_words(drift)
    assert len(words) == len(told)
    for word, part in zip(words, told):
        assert part in word


def test_multi_turn_is_a_conversation(store, visitor) -> None:
    row = item(0)
    from trivet.artifacts import Message
    row = row.model_copy(update={"messages": [
        Message(role="system", content="Be terse."), Message(role="user", content="first *turn*"),
        Message(role="assistant", content="said"), Message(role="user", content="last turn")]})
    store.add_completions([row])
    page = visitor("Bo").get("/label").text
    roles = re.findall(r'class="turn (\w+)(?: last)?"', page)
    assert roles == ["system", "user", "assistant", "user"]
    assert "first <em>turn</em>" in page


def test_a_screen_reader_is_told_everything(filled, visitor) -> None:
    page = visitor("Bo").get("/label").text
    assert page.count('role="radiogroup"') == 4
    for index in range(4):
        assert f'aria-labelledby="legend-{index}"' in page and f'id="legend-{index}"' in page
    assert 'aria-live="polite"' in page and 'lang="en"' in page and 'href="#main"' in page
    labels = re.findall(r'<(?:input|textarea|select)(?![^>]*type="hidden")[^>]*>', page)
    for field in labels:
        assert "aria-label" in field or 'id="note"' in field or 'name="reason' in field, field
    assert len(re.findall(r"<h1", page)) == 1


def test_letters_and_words() -> None:
    assert [letter(i) for i in (0, 25, 26, 27, 701, 702)] == ["A", "Z", "AA", "AB", "ZZ", "AAA"]
    assert order_words([2, 1, None, 2], [1, 0, 3, 2]) == "A > B = C, F: D"
    assert order_words([None, None], [0, 1]) == "F: A, B"


def test_the_form_is_mapped_back_to_the_file() -> None:
    given = Given(["1", "F", "2"], [{"helpful": 5}, {}, {"honest": 1}])
    assert file_order(given, [2, 0, 1]) == ([None, 2, 1], {2: {"helpful": 5}, 1: {"honest": 1}})
    with pytest.raises(Invalid, match="answer B"):
        file_order(Given(["1", "", "2"], [{}, {}, {}]), [0, 1, 2])
    for bad in ("0", "4", "-1", "x", "١", "99999999999999999999"):
        with pytest.raises(Invalid):
            read_form({"rank-0": bad}, 3)
    for seconds, rendered, expected in (("nan", "", 0.0), ("-3", "", 0.0), ("1e9", "", 86400.0), ("inf", "x", 0.0)):
        assert read_form({"seconds": seconds, "rendered": rendered}, 1).seconds == expected


def test_the_way_back_stays_here() -> None:
    assert own_path("/label/3") == "/label/3"
    for bad in ("//evil.com", "https://evil.com", "/\\evil.com", "evil", "", "/a\nb"):
        assert own_path(bad) == "/"


def test_search_link_takes_the_last_question() -> None:
    from trivet.artifacts import Message
    messages = [Message(role="user", content="one"), Message(role="assistant", content="two"),
                Message(role="user", content="three\n four " + "x" * 500)]
    link = search_link(ProjectSettings(search_url="https://s.example/{query}"), messages)
    assert link is not None and link.startswith("https://s.example/three+four+xx") and len(link) < 330


def test_visitors_are_apart(app, filled) -> None:
    one, two = Visitor(app), Visitor(app)
    one.sign_in("Bo")
    assert two.get("/label").url.path == "/sign-in"
