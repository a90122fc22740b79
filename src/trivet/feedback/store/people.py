"""People and programs: accounts, invitations, sessions, API tokens.

Passwords are kept as Argon2id hashes; tokens are 256 random bits, of which only the sha256 is kept.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import secrets
import unicodedata
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, insert, select, update

from trivet.errors import TrivetError
from trivet.feedback.store.database import Connected, now
from trivet.feedback.store.records import ApiToken, Kind, Role, User
from trivet.feedback.store.settings import log
from trivet.feedback.store.tables import ApiTokenRow, AssignmentRow, InvitationRow, SessionRow, UserRow

if TYPE_CHECKING:
    from argon2 import PasswordHasher

PASSWORD_LENGTH = 10
PASSWORD_LONGEST = 1000
SESSION = datetime.timedelta(days=7)
#: a session in use is renewed when it has lost so much of its time: not a write for every request
RENEW_AFTER = datetime.timedelta(hours=1)

USER_COLUMNS = (UserRow.id, UserRow.name, UserRow.role, UserRow.kind, UserRow.paused, UserRow.created_at)
# built once: every request runs one of them
_BY_SESSION = select(*USER_COLUMNS, SessionRow.expires_at).join(SessionRow, SessionRow.user_id == UserRow.id).where(
    SessionRow.token_hash == bindparam("stored"), SessionRow.revoked_at.is_(None),
    SessionRow.expires_at > bindparam("moment"))
_BY_API_TOKEN = select(*USER_COLUMNS).join(ApiTokenRow, ApiTokenRow.user_id == UserRow.id).where(
    ApiTokenRow.token_hash == bindparam("stored"), ApiTokenRow.revoked_at.is_(None))


def to_user(row: Any) -> User:
    """A row that begins with USER_COLUMNS as a record."""
    return User(*row[:len(USER_COLUMNS)])


@functools.cache
def hasher() -> PasswordHasher:
    """Argon2id with the library's own parameters (RFC 9106, low memory)."""
    from argon2 import PasswordHasher

    return PasswordHasher()


@functools.cache
def _nobodys_hash() -> str:
    return hasher().hash(secrets.token_urlsafe(16))


def new_token() -> tuple[str, str]:
    """(a token in clear, what is stored of it)."""
    token = secrets.token_urlsafe(32)
    return token, token_hash(token)


def token_hash(token: str) -> str:
    """The sha256 of a token; it needs no salt, being random."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def clean_name(name: str) -> str:
    """A name as it is stored. Raises TrivetError when nothing, or nothing printable, is left of it."""
    name = " ".join(unicodedata.normalize("NFKC", name).split())
    if not name or len(name) > 100 or not name.isprintable():
        raise TrivetError("a name is 1 to 100 printable characters", field="name", mend="choose another name")
    return name


def name_key(name: str) -> str:
    """What two spellings of one name share."""
    return unicodedata.normalize("NFKC", name.casefold())


def check_password(password: str) -> None:
    """Raise TrivetError for a password that is too short, or so long that hashing it would be an attack."""
    if len(password) < PASSWORD_LENGTH:
        raise TrivetError(f"a password has at least {PASSWORD_LENGTH} characters", field="password",
                          mend="choose a longer one: four words in a row are easy to keep")
    try:
        password.encode()
    except UnicodeEncodeError:
        raise TrivetError("this is no text", field="password", mend="choose another password") from None
    if len(password) > PASSWORD_LONGEST:
        raise TrivetError(f"a password has at most {PASSWORD_LONGEST} characters", field="password",
                          mend="choose a shorter one")


def add_user(connection: Connection, name: str, role: str, kind: str, password_hash: str | None) -> User:
    """Insert an account. Raises TrivetError when the name is taken."""
    name = clean_name(name)
    if connection.execute(select(UserRow.id).where(UserRow.name_key == name_key(name))).first():
        raise TrivetError(f"the name {name!r} is taken", field="name", mend="choose another name")
    row = connection.execute(insert(UserRow).values(
        name=name, name_key=name_key(name), role=role, kind=kind, password_hash=password_hash, paused=False, given=0,
        created_at=now()).returning(*USER_COLUMNS)).one()
    return to_user(row)


def need_user(connection: Connection, user_id: int) -> User:
    """The user. Raises TrivetError when there is none."""
    row = connection.execute(select(*USER_COLUMNS).where(UserRow.id == user_id)).first()
    if row is None:
        raise TrivetError(f"there is no user {user_id}", mend="look at the list of users")
    return to_user(row)


def _one_of(value: str, allowed: tuple[str, ...], field: str) -> None:
    if value not in allowed:
        raise TrivetError(f"{value!r} is none of {', '.join(allowed)}", field=field, mend="give one of them")


class People(Connected):
    """Accounts, as a part of Store."""

    def invite(self, role: Role, *, by: int | None, name: str | None = None, hours: float = 168) -> str:
        """A one-time token in clear, for one new account; stored is only its hash.

        name: the account's name, where the admin has set it already.
        """
        _one_of(role, ("admin", "labeler"), "role")
        if not 0 < hours <= 24 * 365:
            raise TrivetError("an invitation lasts more than 0 hours and at most a year", field="hours",
                              mend="give it in hours, such as 168")
        name = None if name is None else clean_name(name)
        token, stored = new_token()

        def work(connection: Connection) -> None:
            if name is not None and connection.execute(
                    select(UserRow.id).where(UserRow.name_key == name_key(name))).first():
                raise TrivetError(f"the name {name!r} is taken", field="name", mend="choose another name")
            connection.execute(insert(InvitationRow).values(
                token_hash=stored, role=role, name=name, created_by=by, created_at=now(),
                expires_at=now() + datetime.timedelta(hours=hours)))
            log(connection, by, "invite", role=role, name=name, hours=hours)

        self.write(work)
        return token

    def invitation(self, token: str) -> tuple[Role, str | None] | None:
        """(role, name set by the admin) of an invitation that can still be used, else None."""
        row = self.read(lambda c: c.execute(self._open_invitation(token)).first())
        return None if row is None else (row.role, row.name)

    @staticmethod
    def _open_invitation(token: str) -> Any:
        return select(InvitationRow.role, InvitationRow.name, InvitationRow.created_by).where(
            InvitationRow.token_hash == token_hash(token), InvitationRow.used_at.is_(None),
            InvitationRow.expires_at > now())

    def accept_invitation(self, token: str, name: str, password: str) -> User:
        """Make the account that an invitation is for.

        Raises TrivetError for an invitation that is not known, used or expired, a name that is taken, and a
        password of fewer than 10 characters. Where the invitation sets a name, `name` must be that name or empty.
        """
        check_password(password)
        if self.invitation(token) is None:  # before the costly hash
            raise self._no_invitation()
        hashed = hasher().hash(password)

        def work(connection: Connection) -> User:
            invited = connection.execute(self._open_invitation(token).with_for_update()).first()
            if invited is None:
                raise self._no_invitation()
            if invited.name is not None and name.strip() and name_key(clean_name(name)) != name_key(invited.name):
                raise TrivetError(f"this invitation is for {invited.name!r}", field="name", mend="use that name")
            user = add_user(connection, invited.name or name, invited.role, "person", hashed)
            connection.execute(update(InvitationRow).where(InvitationRow.token_hash == token_hash(token))
                               .values(used_at=now(), user_id=user.id))
            log(connection, user.id, "join", role=user.role, name=user.name)
            return user

        return self.write(work)

    @staticmethod
    def _no_invitation() -> TrivetError:
        return TrivetError("this invitation is not known, was used already, or has expired", field="token",
                           mend="ask the admin for a new link")

    def create_user(self, name: str, role: Role, *, kind: Kind = "person", password: str | None = None,
                    by: int | None = None) -> User:
        """An account without an invitation; without a password nobody can sign in with it (tokens work).

        Raises TrivetError when the name is taken, and for a password of fewer than 10 characters.
        """
        _one_of(role, ("admin", "labeler"), "role")
        _one_of(kind, ("person", "ai"), "kind")
        if password is not None:
            check_password(password)
        hashed = None if password is None else hasher().hash(password)

        def work(connection: Connection) -> User:
            user = add_user(connection, name, role, kind, hashed)
            log(connection, by, "create_user", user=user.id, name=user.name, role=role, kind=kind)
            return user

        return self.write(work)

    # --- sessions ------------------------------------------------------------------------------------

    def sign_in(self, name: str, password: str) -> str | None:
        """A session token in clear, or None. An unknown name takes as long as a wrong password."""
        import argon2

        key = name_key(" ".join(unicodedata.normalize("NFKC", name).split()))
        key = key if key.isprintable() else ""  # no account's name; some of what is not printable no database takes
        row = self.read(lambda c: c.execute(
            select(UserRow.id, UserRow.password_hash).where(UserRow.name_key == key)).first())
        hashed = (row.password_hash if row else None) or _nobodys_hash()
        try:
            hasher().verify(hashed, password[:PASSWORD_LONGEST + 1].encode("utf-8", "surrogatepass"))
        except argon2.exceptions.VerifyMismatchError:
            row = None
        if row is None or row.password_hash is None:
            self.write(lambda c: log(c, None, "sign_in_failed", name=key[:100]))
            return None
        user_id, renewed = row.id, hasher().hash(password) if hasher().check_needs_rehash(hashed) else None
        token, stored = new_token()

        def work(connection: Connection) -> None:
            if renewed is not None:
                connection.execute(update(UserRow).where(UserRow.id == user_id).values(password_hash=renewed))
            connection.execute(insert(SessionRow).values(token_hash=stored, user_id=user_id, created_at=now(),
                                                         expires_at=now() + SESSION))
            log(connection, user_id, "sign_in")

        self.write(work)
        return token

    def session_user(self, token: str) -> User | None:
        """Whose session this is; None for one that is not known, expired or signed out. Renews its expiry."""
        stored, moment = token_hash(token), now()
        row = self.read(lambda c: c.execute(_BY_SESSION, {"stored": stored, "moment": moment}).first())
        if row is None:
            return None
        if row.expires_at - moment < SESSION - RENEW_AFTER:
            self.write(lambda c: c.execute(update(SessionRow).where(
                SessionRow.token_hash == stored, SessionRow.revoked_at.is_(None)).values(expires_at=moment + SESSION)))
        return to_user(row)

    def sign_out(self, token: str) -> None:
        """End a session; one that is not known is left at that."""

        def work(connection: Connection) -> None:
            user_id = connection.execute(
                update(SessionRow).where(SessionRow.token_hash == token_hash(token), SessionRow.revoked_at.is_(None))
                .values(revoked_at=now()).returning(SessionRow.user_id)).scalar()
            if user_id is not None:
                log(connection, user_id, "sign_out")

        self.write(work)

    # --- programs ------------------------------------------------------------------------------------

    def create_api_token(self, user_id: int, label: str, by: int | None) -> str:
        """A token in clear with which a program acts as this user; stored is only its hash."""
        token, stored = new_token()

        def work(connection: Connection) -> None:
            need_user(connection, user_id)
            token_id = connection.execute(insert(ApiTokenRow).values(
                token_hash=stored, user_id=user_id, label=label[:200].replace("\0", ""), created_at=now(),
            ).returning(ApiTokenRow.id)).scalar_one()
            log(connection, by, "create_api_token", token=token_id, user=user_id, label=label[:200])

        self.write(work)
        return token

    def api_user(self, token: str) -> User | None:
        """Whose API token this is; None for one that is not known or was revoked."""
        row = self.read(lambda c: c.execute(_BY_API_TOKEN, {"stored": token_hash(token)}).first())
        return None if row is None else to_user(row)

    def api_tokens(self) -> list[ApiToken]:
        """All API tokens, without their secrets."""
        query = select(ApiTokenRow.id, ApiTokenRow.user_id, ApiTokenRow.label, ApiTokenRow.created_at,
                       ApiTokenRow.revoked_at).order_by(ApiTokenRow.id)
        return [ApiToken(*row) for row in self.read(lambda c: c.execute(query).all())]

    def revoke_api_token(self, token_id: int, by: int | None) -> None:
        """From now on the token opens nothing. Raises TrivetError when there is none or it is revoked already."""

        def work(connection: Connection) -> None:
            changed = connection.execute(
                update(ApiTokenRow).where(ApiTokenRow.id == token_id, ApiTokenRow.revoked_at.is_(None))
                .values(revoked_at=now()).returning(ApiTokenRow.id)).first()
            if changed is None:
                raise TrivetError(f"there is no API token {token_id} in force", mend="look at the list of tokens")
            log(connection, by, "revoke_api_token", token=token_id)

        self.write(work)

    # --- all of them ---------------------------------------------------------------------------------

    def users(self) -> list[User]:
        """Everybody, in the order in which they came."""
        query = select(*USER_COLUMNS).order_by(UserRow.id)
        return [to_user(row) for row in self.read(lambda c: c.execute(query).all())]

    def has_admin(self) -> bool:
        """Whether an admin with a password is there, so that somebody can let others in."""
        query = select(UserRow.id).where(UserRow.role == "admin", UserRow.password_hash.is_not(None)).limit(1)
        return self.read(lambda c: c.execute(query).first()) is not None

    def pause_user(self, user_id: int, paused: bool, by: int | None) -> None:
        """Give this user nothing more, and take back what they hold; or let them go on. Raises TrivetError."""
        from trivet.feedback.store.assignments import free_leases

        def work(connection: Connection) -> None:
            need_user(connection, user_id)
            connection.execute(update(UserRow).where(UserRow.id == user_id).values(paused=paused))
            if paused:
                free_leases(connection, AssignmentRow.user_id == user_id, "expired")
            log(connection, by, "pause_user" if paused else "resume_user", user=user_id)

        self.write(work)
