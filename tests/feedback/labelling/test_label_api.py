"""The door for programs: OpenAPI, tokens, the client, an AI labeler that does what a person does."""

from __future__ import annotations

import json

import pytest
from starlette.testclient import TestClient

from feedback.labelling.visitor import item
from trivet.artifacts import Ranking, read_rows
from trivet.errors import TrivetError
from trivet.feedback.labelling.client import LabelClient, LabelError, Skip, Verdict


@pytest.fixture
def admin_client(serving, filled, ids):
    with LabelClient(serving, filled.create_api_token(ids["Ada"], "t", None)) as made:
        yield made


def test_the_description_is_whole(app, filled, visitor) -> None:
    schema = TestClient(app).get("/api/v1/openapi.json").json()
    assert schema["openapi"].startswith("3.")
    assert all(path.startswith("/api/v1/") for path in schema["paths"]), "pages are not part of the API"
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            assert operation["description"], (method, path)
            assert operation["security"], (method, path)
            assert "401" in operation["responses"], (method, path)
    page = visitor("Bo").get("/api")
    assert page.status_code == 200
    for path in schema["paths"]:
        assert path in page.text, path


def test_an_ai_labeler_does_what_a_person_does(admin_client, serving, filled, tmp_path) -> None:
    token = admin_client.add_ai_labeler("reader-1")
    with LabelClient(serving, token) as reader:
        assert reader.me()["kind"] == "ai" and reader.me()["role"] == "labeler"
        assert "rank" in reader.instructions().lower()
        first = reader.next()
        assert first is not None and first == reader.next(), "the same item until it is answered"
        assert "secret" not in repr(first), "answers are blind"
        saved = reader.submit(first, [2, 1, 2, None], note="two alike", seconds=4.0)
        assert saved["ranks"] == [2, 1, 2, None]
        (row,) = filled.history(reader.me()["id"])
        given = filled.assignment(first.id, reader.me()["id"])
        assert given is not None
        assert [given.completions[p].text for p in given.shown_order] == first.answers
        assert [row.ranks[p] for p in given.shown_order] == [2, 1, 2, None]
        assert reader.edit(first, [1, 2, 3, 4])["supersedes"] == saved["id"]
        again = reader.undo()
        assert again is not None and again.id == first.id
        reader.submit(first, [4, 3, 2, 1])
        verdicts = iter([Skip("unsure"), Verdict([1, 1, 1, 1])])
        assert reader.label(lambda _: next(verdicts)) == 2
        assert reader.next() is None
        assert [h["kind"] for h in reader.history()] == ["judge", "skip", "judge"]
    out = admin_client.export(tmp_path / "rankings.jsonl")
    rows = read_rows(out, Ranking)
    assert {r.labeler for r in rows} == {"reader-1"} and len(rows) == 2
    assert next(s for s in admin_client.labelers() if s["user"]["name"] == "reader-1")["judgments"] == 2
    assert admin_client.progress()["done"] == 2


def test_a_repeated_request_saves_once(admin_client, serving, filled) -> None:
    token = admin_client.add_ai_labeler("r")
    with LabelClient(serving, token) as reader:
        work = reader.next()
        assert work is not None
        one = reader.submit(work, [1, 2, 3, 4], request_id="same")
        assert reader.submit(work, [1, 2, 3, 4], request_id="same")["id"] == one["id"]
        with pytest.raises(LabelError) as refused:
            reader.submit(work, [4, 3, 2, 1], request_id="other")
        assert refused.value.status == 422


@pytest.mark.parametrize(("body", "told"), [
    ({"ranks": [1, 2, 3]}, "4 answers, but 3 ranks"), ({"ranks": [0, 1, 2, 3]}, ""),
    ({"ranks": [1, 2, 3, "x"]}, "ranks"),
    ({"ranks": [1, 2, 3, 4], "seconds": -1}, "seconds"), ({"ranks": [1, 2, 3, 4], "spam": 1}, "spam"),
    ({"ranks": [1, 2, 3, 4], "ratings": [{"helpful": 6}, {}, {}, {}]}, "helpful"), ({}, "ranks"),
    ({"ranks": [1, 2, 3, 4], "ratings": [{}]}, "1 ratings"),
])
def test_bad_verdicts_are_told_in_words(app, filled, ids, body, told) -> None:
    client = TestClient(app, headers={"Authorization": f"Bearer {filled.create_api_token(ids['Bo'], 't', None)}"})
    work = client.post("/api/v1/assignments/next").json()
    answer = client.post(f"/api/v1/assignments/{work['id']}/judgment", json=body)
    assert answer.status_code == 422 and told in answer.json()["error"] and answer.json()["mend"]
    assert filled.history(ids["Bo"]) == []


def test_tokens_end_and_wrong_ones_are_limited(app, filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/account")
    page = bo.post("/account/token", {"label": "my script"}).text
    token = page.split('id="fresh"')[1].split('value="')[1].split('"')[0]
    client = TestClient(app)
    good = {"Authorization": f"Bearer {token}"}
    assert client.get("/api/v1/me", headers=good).json()["name"] == "Bo"
    (listed,) = filled.api_tokens()
    cy = visitor("Cy")
    cy.get("/account")
    assert cy.post(f"/account/token/{listed.id}/revoke").status_code == 404, "another's token"
    bo.get("/account")
    bo.post(f"/account/token/{listed.id}/revoke")
    assert client.get("/api/v1/me", headers=good).status_code == 401
    answers = [client.get("/api/v1/me", headers={"Authorization": f"Bearer guess{n}"}).status_code for n in range(8)]
    assert answers[0] == 401 and answers[-1] == 429


def test_administration(admin_client, serving, filled, tmp_path) -> None:
    assert admin_client.add_completions([item(50), item(0)]) == {"added": 1, "present": 1}
    gold = Ranking(**item(60).model_dump(), ranks=[1, 2, 3, None], labeler="gold")
    assert admin_client.add_gold([gold])["added"] == 1
    assert admin_client.invite(name="Eve").startswith(f"{serving}/invite/")
    assert admin_client.change_settings(overlap=2)["overlap"] == 2
    with pytest.raises(LabelError):
        admin_client.change_settings(overlap=0)
    with pytest.raises(LabelError):
        admin_client.change_settings(spam=1)
    assert admin_client.agreement() == {"items": 0}
    with pytest.raises(LabelError, match="no ranking"):
        admin_client.export(tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()


def test_pausing_a_user_through_the_api(app, filled, ids) -> None:
    client = TestClient(app, headers={"Authorization": f"Bearer {filled.create_api_token(ids['Ada'], 't', None)}"})
    assert client.patch(f"/api/v1/users/{ids['Bo']}", json={"paused": True}).json()["paused"] is True
    bo = TestClient(app, headers={"Authorization": f"Bearer {filled.create_api_token(ids['Bo'], 't', None)}"})
    assert bo.post("/api/v1/assignments/next").status_code == 204


@pytest.mark.parametrize("format", ["rankings", "preference", "argilla", "label_studio"])
def test_every_export_is_a_file(admin_client, serving, filled, tmp_path, format) -> None:
    with LabelClient(serving, admin_client.add_ai_labeler("r")) as reader:
        reader.label(lambda _: Verdict([1, 2, 3, None]))
    text = admin_client.export(tmp_path / "out", format).read_text()
    assert json.loads(text) if format == "label_studio" or text.startswith("[") else \
        all(json.loads(line) for line in text.splitlines())


def test_the_client_tries_again_and_then_says_so() -> None:
    import httpx

    seen: list[bytes] = []

    def flaky(request: httpx.Request) -> httpx.Response:
        seen.append(request.content)
        if len(seen) == 1:
            raise httpx.ConnectError("gone", request=request)
        if len(seen) == 2:
            return httpx.Response(503, json={"error": "busy", "mend": "again"})
        return httpx.Response(201, json={"id": 7, "ranks": [1]})

    pauses: list[float] = []
    client = LabelClient("http://x", "t", transport=httpx.MockTransport(flaky), sleep=pauses.append)
    assert client.submit(3, [1])["id"] == 7
    assert len(set(seen)) == 1 and json.loads(seen[0])["request_id"], "the same request id each time"
    assert pauses == [1.0, 2.0]

    def dead(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("gone", request=request)

    client = LabelClient("http://x", "secret-token", transport=httpx.MockTransport(dead), sleep=pauses.append, tries=2)
    with pytest.raises(TrivetError, match="does not answer"):
        client.next()
    assert "secret-token" not in repr(client)
