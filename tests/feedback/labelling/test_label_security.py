"""What must not be possible: foreign forms, guessing, others' answers, the admin's pages, scripts of any kind."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from fastapi.routing import APIRoute
from starlette.testclient import TestClient

from feedback.labelling.visitor import PASSWORD, Visitor
from trivet.feedback.labelling import security
from trivet.feedback.labelling.app import create_app
from trivet.feedback.labelling.security import HEADERS, RateLimit, SignInLimits
from trivet.feedback.labelling.web import HERE

PATHS = {"assignment_id": "1", "item_id": "1", "user_id": "2", "token_id": "1", "token": "x", "job_id": "x",
         "index": "0", "format": "rankings"}


def routes(app, method: str, prefix: str = "") -> list[str]:
    found = []

    def walk(entries) -> None:
        for route in entries:
            if isinstance(route, APIRoute):
                if method in route.methods and route.path.startswith(prefix):
                    found.append(re.sub(r"\{(\w+)\}", lambda m: PATHS[m[1]], route.path))
            elif hasattr(route, "original_router"):
                walk(route.original_router.routes)
    walk(app.routes)
    return found


def test_every_form_wants_its_token(app, filled, visitor) -> None:
    admin = visitor("Ada")
    admin.get("/label")
    posts = [p for p in routes(app, "POST") if not p.startswith("/api/")]
    assert len(posts) >= 18, posts
    good = admin.hidden["csrf"]
    for path in posts:
        for data in ({}, {"csrf": "0" * 64}, {"csrf": security.csrf_token("another session")}):
            answer = admin.client.post(path, data=data, follow_redirects=False)
            assert answer.status_code == 403 and "out of date" in answer.text, path
        answer = admin.client.post(path, data={"csrf": good}, headers={"Origin": "https://evil.example"},
                                   follow_redirects=False)
        assert answer.status_code == 403, path
        answer = admin.client.post(path, data={"csrf": good}, headers={"Sec-Fetch-Site": "cross-site"},
                                   follow_redirects=False)
        assert answer.status_code == 403, path
    assert filled.history(1) == [] and len(filled.users()) == 3


def test_forms_work_from_their_own_origin_and_behind_a_proxy(filled) -> None:
    app = create_app(filled, url="https://label.example.org")
    one = Visitor(app, "https://inside.test")
    one.get("/sign-in")
    answer = one.post("/sign-in", {"name": "Bo", "password": PASSWORD}, follow_redirects=False,
                      headers={"Origin": "https://label.example.org", "Sec-Fetch-Site": "same-origin"})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "Secure" in cookie and answer.headers["strict-transport-security"]


def test_tokens_of_one_do_not_serve_another(filled, visitor) -> None:
    bo, cy = visitor("Bo"), visitor("Cy")
    bo.get("/label")
    cy.get("/label")
    answer = cy.client.post(f"/label/{cy.assignment_id()}", data=cy.hidden | {"csrf": bo.hidden["csrf"]})
    assert answer.status_code == 403


def test_cookies_are_out_of_reach(filled, visitor) -> None:
    one = visitor()
    door = one.get("/sign-in").headers["set-cookie"]
    answer = one.post("/sign-in", {"name": "bo", "password": PASSWORD}, follow_redirects=False)
    session = next(c for c in answer.headers.get_list("set-cookie") if c.startswith("trivet_session"))
    for cookie in (door, session):
        assert "HttpOnly" in cookie and "samesite=lax" in cookie.lower() and "Path=/" in cookie
    token = session.split("=", 1)[1].split(";")[0]
    assert token not in one.get("/label").text, "the page holds the CSRF token, never the session"


def test_sign_out_ends_the_session(filled, visitor) -> None:
    bo = visitor("Bo")
    stolen = bo.client.cookies["trivet_session"]
    bo.get("/label")
    assert bo.post("/sign-out").url.path == "/sign-in"
    bo.client.cookies.set("trivet_session", stolen)
    assert bo.get("/label").url.path == "/sign-in"


def test_guessing_is_slowed(app, filled, visitor) -> None:
    one = visitor()
    for _ in range(5):
        one.get("/sign-in")
        assert one.post("/sign-in", {"name": "Bo", "password": "wrong wrong"}).status_code == 401
    answer = one.post("/sign-in", one.hidden | {"name": " BO ", "password": PASSWORD})
    assert answer.status_code in {403, 429}
    one.get("/sign-in")
    answer = one.post("/sign-in", {"name": " BO ", "password": PASSWORD})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 200
    one.get("/sign-in")
    assert one.post("/sign-in", {"name": "Cy", "password": PASSWORD}).status_code == 200, "others may come in"
    other = visitor()
    for _ in range(6):
        other.get("/sign-in")
        answer = other.client.post("/invite/guess", data=other.hidden | {
            "name": "x", "password": "long enough one", "again": "long enough one"})
    assert answer.status_code == 429


def test_wrong_names_and_wrong_passwords_look_alike(filled, visitor) -> None:
    pages = []
    for name in ("Bo", "Nobody"):
        one = visitor()
        one.get("/sign-in")
        answer = one.post("/sign-in", {"name": name, "password": "wrong wrong"})
        pages.append((answer.status_code, re.sub(r'value="[^"]*"', "", answer.text)))
    assert pages[0] == pages[1]


def test_a_right_try_gives_its_turn_back() -> None:
    now = [0.0]
    limit = RateLimit(2, 60.0, clock=lambda: now[0], keys=3)
    assert limit.attempt("a") == 0 and limit.attempt("a") == 0
    assert limit.attempt("a") == 60.0
    now[0] = 59.0
    assert limit.attempt("a") == pytest.approx(1.0)
    limit.succeeded("a")
    assert limit.attempt("a") == 0
    now[0] = 200.0
    assert limit.attempt("a") == 0
    for key in "bcde":
        limit.attempt(key)
    assert len(limit._tries) == 3, "memory is bounded"
    limits = SignInLimits(clock=lambda: now[0])
    for n in range(40):
        assert limits.attempt(f"name{n}", "1.2.3.4") == 0
    assert limits.attempt("another", "1.2.3.4") > 0, "one address can't try all names"
    assert limits.attempt("another", "1.2.3.5") == 0


def test_no_labeler_sees_the_admins_pages(app, filled, visitor) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    token = filled.create_api_token(2, "t", None)
    pages = list(routes(app, "GET", "/admin"))
    assert len(pages) >= 8
    for path in pages:
        answer = bo.get(path)
        assert answer.status_code == 403 and "for admins" in answer.text, path
    bo.get("/label")
    for path in routes(app, "POST", "/admin"):
        assert bo.post(path).status_code == 403, path
        bo.get("/label")
    client = TestClient(app)
    admin_only = 0
    for method in ("GET", "POST", "PATCH"):
        for path in routes(app, method, "/api/v1"):
            if path == "/api/v1/openapi.json":
                continue
            assert client.request(method, path).status_code == 401, path
            answer = client.request(method, path, headers={"Authorization": f"Bearer {token}"}, json={})
            admin_only += answer.status_code == 403
    assert admin_only >= 12
    assert visitor("Ada").get("/admin").status_code == 200


def test_no_labeler_reaches_anothers_answers(app, filled, visitor, ids) -> None:
    bo, cy, ada = visitor("Bo"), visitor("Cy"), visitor("Ada")
    bo.get("/label")
    his = bo.assignment_id()
    bo.rank("1", "2", "3", "F", note="a private remark")
    token = filled.create_api_token(ids["Cy"], "t", None)
    client = TestClient(app, headers={"Authorization": f"Bearer {token}"})
    for one in (cy, ada):
        for path in (f"/label/{his}", f"/label/{his}/answer/0", f"/live/{his}/next"):
            assert one.get(path).status_code == 404, path
        one.get("/mine")
        for path in (f"/label/{his}", f"/label/{his}/skip"):
            ranks = {f"rank-{i}": "1" for i in range(4)}
            assert one.post(path, ranks | {"reason_text": "x", "mode": "edit"}).status_code == 404
            one.get("/mine")
        assert "private remark" not in one.get("/mine").text
    there, not_there = cy.get(f"/label/{his}"), cy.get("/label/99999")
    assert there.text == not_there.text, "whether it exists is not told"
    assert client.get(f"/api/v1/assignments/{his}").status_code == 404
    for method in ("POST", "PUT"):
        answer = client.request(method, f"/api/v1/assignments/{his}/judgment", json={"ranks": [1, 1, 1, 1]})
        assert answer.status_code == 404
    assert client.get("/api/v1/history").json() == []
    assert len(filled.history(ids["Bo"])) == 1 and filled.history(ids["Bo"])[0].supersedes is None


def test_the_api_knows_no_cookies(app, filled, visitor) -> None:
    assert visitor("Ada").client.get("/api/v1/users").status_code == 401


def test_without_signing_in_there_is_only_the_door(app, filled) -> None:
    client = TestClient(app)
    public = {"/sign-in", "/invite/x", "/health", "/api/v1/openapi.json"}
    for path in routes(app, "GET"):
        if path in public or path.startswith("/api/v1"):
            continue
        answer = client.get(path, follow_redirects=False)
        assert answer.status_code == 303 and answer.headers["location"].startswith("/sign-in"), path


def test_headers_of_every_answer(app, filled, visitor, monkeypatch) -> None:
    bo = visitor("Bo")
    answers = [bo.get("/label"), bo.get("/nothing"), bo.get("/static/app.js"), bo.get("/admin"),
               bo.client.get("/api/v1/me"), bo.client.post("/undo"), bo.client.get("/", follow_redirects=False)]

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(filled, "next_assignment", fail)
    answers.append(bo.get("/label"))
    assert [a.status_code for a in answers] == [200, 404, 200, 403, 401, 403, 303, 500]
    assert "secret detail" not in answers[-1].text
    for answer in answers:
        for name, value in HEADERS.items():
            assert answer.headers[name] == value, (answer.url, name)
        assert answer.headers["cache-control"]
    assert "no-store" in answers[0].headers["cache-control"]
    policy = HEADERS["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy


def test_nothing_is_inline_and_nothing_comes_from_elsewhere() -> None:
    for file in sorted((HERE / "templates").iterdir()):
        text = file.read_text()
        assert not re.search(r"\sstyle=|<style|\son\w+=|javascript:", text), file.name
        assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", text)), file.name
        for url in re.findall(r"(?:src|href|action)=\"([^\"{]+)", text):
            assert url.startswith(("/", "#")), (file.name, url)
        assert "|safe" not in text, file.name
    for file in (HERE / "static").iterdir():
        for url in re.findall(r"https?://[\w.]+", file.read_text()):
            assert url == "http://www.w3.org", (file.name, url)


def test_large_requests_are_refused(filled, visitor) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    answer = bo.client.post("/undo", data=bo.hidden | {"note": "x" * (1 << 20)})
    assert answer.status_code == 413

    def chunks():
        for _ in range(40):
            yield b"x" * 65536

    answer = bo.client.post("/undo", content=chunks(),
                            headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert answer.status_code >= 400
    answer = bo.client.post("/undo", data=bo.hidden | {f"f{i}": "1" for i in range(3000)})
    assert answer.status_code == 400


def test_a_paused_labeler_can_change_nothing(filled, visitor, ids) -> None:
    bo = visitor("Bo")
    bo.get("/label")
    filled.pause_user(ids["Bo"], True, None)
    answer = bo.rank("1", "2", "3", "4")
    assert "Your account is paused" in answer.text and filled.history(ids["Bo"]) == []
    assert "Your account is paused" in bo.get("/label").text


def test_static_serves_only_its_folder(app) -> None:
    client = TestClient(app)
    for path in ("/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py", "/static/"):
        assert client.get(path).status_code in {404, 405}, path
    assert Path(HERE / "app.py").exists()
