"""What is wrong with a base is found before the model is asked anything."""

from __future__ import annotations

import shutil

import pytest

from trivet.cli import main


@pytest.mark.parametrize(("base", "words"), [
    ("no/such/model", "there is no model"), ("bare", "--plain-template"), ("empty", "this folder is no model")])
def test_a_bad_base_is_found_first(tmp_path, monkeypatch, capsys, tiny_model_folder, base, words):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_model_folder, tmp_path / "bare")
    (tmp_path / "bare" / "chat_template.jinja").unlink()
    (tmp_path / "empty").mkdir()
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", str(tiny_model_folder), "--suites", "attacks", "--limit", "1", "--against", base,
              "--out", "o"])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "o" / "answers").exists()
