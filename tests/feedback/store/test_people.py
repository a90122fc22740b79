"""Accounts, invitations, sessions, tokens, settings, audit."""

from __future__ import annotations

import datetime

import pytest
from sqlalchemy import text

from trivet.errors import TrivetError
from trivet.feedback.store import Store, people
from trivet.feedback.store.database import now

PASSWORD = "four words in a row"


@pytest.fixture(autouse=True)
def quick_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    from argon2 import PasswordHasher

    quick = PasswordHasher(time_cost=1, memory_cost=64, parallelism=1)
    monkeypatch.setattr(people, "hasher", lambda: quick)


def everything(store: Store) -> str:
    """The whole database as text."""
    tables = ("users", "invitations", "sessions", "api_tokens", "events", "settings")
    return str([store.read(lambda c, t=t: c.execute(text(f"SELECT * FROM {t}")).all()) for t in tables])


def test_invitation_makes_one_account(store: Store) -> None:
    assert not store.has_admin()
    token = store.invite("admin", by=None)
    assert store.invitation(token) == ("admin", None)
    user = store.accept_invitation(token, "  Ann   Smith ", PASSWORD)
    assert (user.name, user.role, user.kind, user.paused) == ("Ann Smith", "admin", "person", False)
    assert store.has_admin() and store.users() == [user]
    for again in (token, "unheard of", ""):
        assert store.invitation(again) is None
        with pytest.raises(TrivetError, match="not known, was used already, or has expired"):
            store.accept_invitation(again, "Eve", PASSWORD)
    assert token not in everything(store) and PASSWORD not in everything(store)


def test_invitation_expires(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    token = store.invite("labeler", by=None, hours=2)
    later = now() + datetime.timedelta(hours=3)
    monkeypatch.setattr(people, "now", lambda: later)
    with pytest.raises(TrivetError, match="has expired"):
        store.accept_invitation(token, "Ann", PASSWORD)


def test_invitation_for_a_name(store: Store) -> None:
    token = store.invite("labeler", by=None, name="Bob")
    with pytest.raises(TrivetError, match="is for 'Bob'"):
        store.accept_invitation(token, "Ann", PASSWORD)
    assert store.accept_invitation(token, "", PASSWORD).name == "Bob"


@pytest.mark.parametrize("name, password, words", [
    ("ann", PASSWORD, "taken"), ("ＡＮＮ", PASSWORD, "taken"), ("Bob", "too short", "at least 10"),
    ("Bob", "x" * 1001, "at most 1000"), ("", PASSWORD, "1 to 100"), ("a\u202eb", PASSWORD, "printable"),
    ("a\0b", PASSWORD, "printable"), ("x" * 101, PASSWORD, "1 to 100"),
])
def test_bad_names_and_passwords_leave_the_invitation(store: Store, name: str, password: str, words: str) -> None:
    store.create_user("Ann", "labeler")
    token = store.invite("labeler", by=None)
    with pytest.raises(TrivetError, match=words):
        store.accept_invitation(token, name, password)
    assert store.invitation(token) is not None


def test_sign_in_and_out(store: Store) -> None:
    user = store.create_user("Ann", "labeler", password=PASSWORD)
    assert store.sign_in("Ann", "not her password") is None
    assert store.sign_in("Nobody", PASSWORD) is None
    assert store.sign_in("a\0b\ud800", PASSWORD + "\ud800") is None
    store.create_user("Program", "labeler", kind="ai")  # has no password
    assert store.sign_in("Program", "") is None
    token = store.sign_in(" ANN ", PASSWORD)
    assert token is not None and len(token) >= 43  # 256 bits
    assert store.session_user(token) == user
    assert store.session_user(token + "x") is None
    assert token not in everything(store)
    store.sign_out(token)
    store.sign_out("unheard of")
    assert store.session_user(token) is None


def test_an_unknown_name_is_verified_like_a_known_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_user("Ann", "labeler", password=PASSWORD)
    real, verified = people.hasher(), []

    class Watched:
        hash, check_needs_rehash = real.hash, real.check_needs_rehash

        def verify(self, hashed: str, password: str) -> bool:
            verified.append(hashed[:9])
            return real.verify(hashed, password)

    monkeypatch.setattr(people, "hasher", Watched)
    store.sign_in("Ann", "not her password")
    store.sign_in("Nobody", "not her password")
    assert verified == ["$argon2id", "$argon2id"]


def test_sessions_end_when_idle_and_are_renewed_by_use(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create_user("Ann", "labeler", password=PASSWORD)
    token = store.sign_in("Ann", PASSWORD)
    start = now()
    for days in (6, 12):  # each within a week of the last use
        monkeypatch.setattr(people, "now", lambda days=days: start + datetime.timedelta(days=days))
        assert store.session_user(token) is not None
    monkeypatch.setattr(people, "now", lambda: start + datetime.timedelta(days=20))
    assert store.session_user(token) is None


def test_api_tokens(store: Store) -> None:
    user = store.create_user("reader", "labeler", kind="ai")
    token = store.create_api_token(user.id, "first", by=None)
    assert store.api_user(token) == user and user.kind == "ai"
    assert store.session_user(token) is None and store.api_user("x") is None
    assert token not in everything(store)
    known = store.api_tokens()[0]
    store.revoke_api_token(known.id, by=user.id)
    assert store.api_user(token) is None
    with pytest.raises(TrivetError, match="no API token"):
        store.revoke_api_token(known.id, by=user.id)
    with pytest.raises(TrivetError, match="no user"):
        store.create_api_token(99, "x", by=None)


def test_settings_are_kept_and_checked(store: Store, store_url: str) -> None:
    assert "sparingly" in store.settings().instructions.lower() and "F" in store.settings().instructions
    changed = store.change_settings(None, overlap=5, search_url="https://example.org/?q={query}", title="Ours")
    with Store.open(store_url) as other:
        assert other.settings() == changed
    for wrong in ({"overlap": 0}, {"unknown": 1}, {"search_url": "javascript:alert({query})"}, {"gold_rate": 1.5},
                  {"search_url": "https://example.org/"}):
        with pytest.raises(TrivetError) as fault:
            store.change_settings(None, **wrong)
        assert fault.value.field == next(iter(wrong))
    assert store.settings() == changed


def test_the_audit_trail_tells_who_did_what(store: Store) -> None:
    admin = store.create_user("Ann", "admin", password=PASSWORD)
    store.invite("labeler", by=admin.id)
    store.change_settings(admin.id, title="New")
    store.change_settings(admin.id, title="New")  # no change, no line
    store.pause_user(admin.id, True, by=admin.id)
    store.sign_in("Ann", "not her password")
    store.record(admin.id, "export", format="rankings")
    told = [(e.action, e.user_id) for e in store.audit(6)]
    assert told == [("export", admin.id), ("sign_in_failed", None), ("pause_user", admin.id), ("settings", admin.id),
                    ("invite", admin.id), ("create_user", None)]
    assert store.audit(10)[3].detail == {"changed": ["title"], "title": "New"}
    assert store.audit(1)[0].at.tzinfo is not None
