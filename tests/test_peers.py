"""benchmarks/peers.py: environments that are whole or not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

import peers
from trivet.errors import TrivetError


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> peers.Recipe:
    """A peer of which the running environment has this very version: pytest."""
    found = peers.Recipe(pytest.__version__, (), ("no-such-package", "pytest"))
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.setitem(peers.RECIPES, "trl", found)
    monkeypatch.delenv("TRIVET_PEER_TRL", raising=False)
    return found


def test_made_once_and_anew_where_it_was_left_half_made(recipe, tmp_path, monkeypatch) -> None:
    made = []

    def make(folder: Path, name: str, recipe: peers.Recipe) -> None:
        (folder / "bin").mkdir(parents=True, exist_ok=True)
        made.append(name)

    monkeypatch.setattr(peers, "_make", make)
    mark = tmp_path / ".venv-trl" / peers.MARK
    assert not peers.available("trl")
    for _ in range(2):
        assert peers.environment("trl") == tmp_path / ".venv-trl" / "bin" / "python" and peers.available("trl")
        assert made == ["trl"]
    assert json.loads(mark.read_text())["version"] == pytest.__version__
    mark.unlink()  # as one that was killed leaves it
    assert not peers.available("trl")
    peers.environment("trl")
    monkeypatch.setitem(peers.RECIPES, "trl", peers.Recipe("2", (("trl==2",),), ("trl",)))
    assert not peers.available("trl")
    peers.environment("trl")
    assert made == ["trl"] * 3


def test_nothing_is_left_of_one_that_can_not_be_made(recipe, tmp_path, monkeypatch) -> None:
    step = ("--no-index", "--find-links", str(tmp_path), "trivet-no-such-package==1")
    monkeypatch.setitem(peers.RECIPES, "trl", peers.Recipe("1", (step,), ("pip",)))
    with pytest.raises(TrivetError, match=r"can't be made: pip says .*trivet-no-such-package(.|\n)*--peer-env"):
        peers.environment("trl")
    assert not (tmp_path / ".venv-trl").exists()


def test_a_named_environment_must_have_the_peer_in_its_version(recipe, tmp_path, monkeypatch) -> None:
    folder, python = Path(sys.prefix), Path(sys.prefix) / "bin" / "python"
    assert peers.environment("trl", folder) == python == peers.environment("trl", python)
    monkeypatch.setenv("TRIVET_PEER_TRL", str(folder))
    assert peers.environment("trl") == python and peers.available("trl")
    monkeypatch.setitem(peers.RECIPES, "trl", peers.Recipe("1", (), ("pytest",)))
    with pytest.raises(TrivetError, match=f"has trl {pytest.__version__}"):
        peers.environment("trl", folder)
    monkeypatch.setitem(peers.RECIPES, "trl", peers.Recipe("1", (), ("no-such-package",)))
    with pytest.raises(TrivetError, match="has no trl"):
        peers.environment("trl", folder)
    with pytest.raises(TrivetError, match="is not there"):
        peers.environment("trl", tmp_path / "elsewhere")
