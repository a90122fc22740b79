"""`trivet label serve|agreement|invite|import|export`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivet.artifacts import Completions, Ranking, read_rows
from trivet.errors import TrivetError
from trivet.feedback.labelling.config import (
    LabelAgreementConfig,
    LabelExportConfig,
    LabelImportConfig,
    LabelInviteConfig,
    LabelServeConfig,
)

if TYPE_CHECKING:
    from trivet.feedback.store import AddResult, Store

USAGE = """\
usage: trivet label serve [COMPLETIONS.jsonl] [--db DB] [--overlap 3] [--gold FILE] [--model MODEL|URL] …
                                       the web app in which a team ranks completions
       trivet label agreement [DB]     how far the labelers agree, with intervals
       trivet label invite [DB]        a link by which one person gets an account
       trivet label import FILE [--db DB] [--format rankings|gold|argilla|…]
       trivet label export [DB] --out FILE [--format rankings|preference|argilla|label-studio]

DB is a SQLite file (default: labels.db here) or postgresql+psycopg://USER@HOST/NAME. `trivet label COMMAND --help`
shows every setting. When enough is ranked: trivet pairs --from-labels DB.
"""
HELP = {
    "serve": (LabelServeConfig, "completions", "a web app in which a team ranks completions"),
    "agreement": (LabelAgreementConfig, "db", "how far the labelers agree"),
    "invite": (LabelInviteConfig, "db", "a link by which one person gets an account"),
    "import": (LabelImportConfig, "file", "completions, gold items or rankings into the store"),
    "export": (LabelExportConfig, "db", "judgments out of the store"),
}
Parse = Callable[[type[Any], list[str], str, str], Any]


def label_command(arguments: list[str], parse: Parse) -> None:
    """Run a `label` command; prints its answer.

    parse: the command line's own reader of configurations (cli.parse). Raises TrivetError.
    """
    if not arguments or arguments[0] in {"-h", "--help"}:
        print(USAGE, end="")
        return
    name, rest = arguments[0], arguments[1:]
    if name not in HELP:
        raise TrivetError(f"`trivet label {name}` is not understood", mend="see `trivet label --help`")
    kind, positional, words = HELP[name]
    if rest and not rest[0].startswith("-"):
        rest = [f"--{positional}", *rest]
    config = parse(kind, rest, f"label {name}", words)
    work: dict[str, Callable[[Any], None]] = {
        "serve": serve, "agreement": agreement, "invite": invite, "import": import_file, "export": export_file}
    work[name](config)


def _open(db: str, *, new: bool = False) -> Store:
    """The store; where nothing may be made anew, TrivetError when there is none."""
    from trivet.feedback.labels import database_file
    from trivet.feedback.store import Store

    file = database_file(db)
    if not new and file is not None and not file.exists():
        raise TrivetError("there is no such label store", file=file, field="db",
                          mend="`trivet label serve` or `trivet label import` makes one; --db names it")
    return Store.open(db)


def _added(what: str, result: AddResult) -> str:
    present = f", {result.present} were there already" if result.present else ""
    return f"{what}: {result.added} added{present}"


def prepare(store: Store, config: LabelServeConfig, completions: list[Completions], gold: list[Ranking]) -> None:
    """What the command line says, put into the store: settings, completions, gold items."""
    changes = {name: value for name in ("title", "overlap", "gold_rate", "repeat_rate")
               if (value := getattr(config, name)) is not None}
    if changes:
        store.change_settings(None, **changes)
    if completions:
        print(_added(f"items from {config.completions}", store.add_completions(completions, round=config.round)))
    if gold:
        print(_added(f"gold items from {config.gold}", store.add_gold(gold)))


def serve(config: LabelServeConfig) -> None:
    """Run the app until it is interrupted. Prints its address, and a link for the first admin until there is one."""
    import uvicorn

    from trivet.feedback.labelling.app import create_app
    from trivet.feedback.labelling.live import live_model

    # what is given is looked at before a store is made
    completions = read_rows(config.completions, Completions) if config.completions else []
    gold = read_rows(config.gold, Ranking) if config.gold else []
    if config.model is not None and not config.model.startswith(("http://", "https://")):
        from trivet.models.source import resolve

        resolve(config.model)  # a name that is wrong is told now, not to the first labeler
    store = _open(config.db, new=True)
    try:
        prepare(store, config, completions, gold)
        live = None
        if config.model is not None:
            live = live_model(config.model, config.model_name, config.sampling, config.device)
        listening = _listen(config.host, config.port)
        host, port = listening.getsockname()[:2]
        shown_host = "127.0.0.1" if host == "0.0.0.0" else f"[{host}]" if ":" in host else host
        url = config.url or f"http://{shown_host}:{port}"
        app = create_app(store, url=config.url, live=live, answers=config.answers)
        print(f"labels: {config.db}\nserving {url} (Ctrl-C stops)", flush=True)
        if host == "0.0.0.0" and config.url is None:
            print("anyone who reaches this machine reaches the sign-in page, unencrypted: put TLS before it (--url)")
        if not store.has_admin():
            print(f"the admin's link, for one use: {url}/invite/{store.invite('admin', by=None)}", flush=True)
        # no access log: invitation links would stand in it
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, server_header=False,
                                               timeout_graceful_shutdown=10))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn ends what is under way, then raises the signal again
            server.run(sockets=[listening])
    finally:
        store.close()
    print("stopped; every answer that was acknowledged is in the store")


def _listen(host: str, port: int) -> Any:
    """A socket that listens. Raises TrivetError where the address is taken or not this machine's."""
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise TrivetError(f"cannot listen on {host} port {port}: {error.strerror or error}", field="port",
                          mend="choose another --port (0 takes a free one) or --host") from None
    return listening


def agreement(config: LabelAgreementConfig) -> None:
    """Print the figures, and write them as JSON where asked."""
    from rich.console import Console

    from trivet.artifacts import write_json
    from trivet.feedback.agreement import table
    from trivet.feedback.labelling.figures import make

    with _open(config.db) as store:
        found = make(store, config.seed)
    if found.report is None:
        raise TrivetError("this store holds no judgments yet", field="db", mend="label some items first")
    Console(highlight=False).print(table(found.report))
    if config.json_file is not None:
        write_json(config.json_file, found.as_dict())


def invite(config: LabelInviteConfig) -> None:
    """Print an invitation link."""
    with _open(config.db) as store:
        token = store.invite(config.role, by=None, name=config.name, hours=config.hours)
    print(f"{config.url.rstrip('/')}/invite/{token}")


def import_file(config: LabelImportConfig) -> None:
    """Put a file's rows into the store."""
    from trivet.feedback.store import transfer

    file: Path = config.file
    rankings: list[Ranking] = []
    completions: list[Completions] = []
    match config.format:
        case "completions":
            completions = read_rows(file, Completions)
        case "gold":
            rankings = read_rows(file, Ranking)
        case _:
            rankings = transfer.read(file, config.format.replace("-", "_"))  # type: ignore[arg-type]
    with _open(config.db, new=True) as store:
        if config.format == "completions":
            result = store.add_completions(completions, round=config.round)
        elif config.format == "gold":
            result = store.add_gold(rankings)
        else:
            result = store.add_rankings(rankings, round=config.round)
    print(_added(f"{config.format} from {file}", result))


def export_file(config: LabelExportConfig) -> None:
    """Write the store's judgments to a file."""
    from trivet.feedback.store import transfer

    with _open(config.db) as store:
        count = transfer.export(store, config.out, config.format.replace("-", "_"))  # type: ignore[arg-type]
    print(f"{count} rows: {config.out}")
