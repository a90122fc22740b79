"""The documents tell the truth: commands run, files and links are there, names exist."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from trivet.cli import help_text, main
from trivet.stages import STAGES

ROOT = Path(__file__).parents[1]
DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md")),
        ROOT / "src/trivet/starter/README.md"]
# counts only: what --quick is to a recipe
QUICK = {
    "sample": ["--limit", "2", "--completions", "2", "--sampling.max-new-tokens", "4"],
    "check": ["--count", "4", "--sampling.max-new-tokens", "16"],
    "reward": ["--epochs", "0.01", "--calibration.answers", "2", "--calibration.sampling.max-new-tokens", "4",
               "--lora.last-layers", "1"],
    "ppo": ["--stop.steps", "1", "--rollout", "2", "--sampling.max-new-tokens", "4", "--evaluation.samples", "1",
            "--no-check", "--lora.last-layers", "1", "--evaluation.share", "0.05"],
    "distill": ["--limit", "2", "--sampling.max-new-tokens", "4", "--batch", "2"],
    "prune": ["--calibration.windows", "4", "--calibration.length", "32", "--depth.windows", "1", "--held-out.windows",
              "1", "--held-out.length", "64"],
    "dpo": ["--epochs", "0.01", "--lora.last-layers", "1", "--batch", "2", "--max-length", "80"],
    "quantize": ["--held-out.windows", "1", "--held-out.length", "32"],
    "evaluate": ["--limit", "2", "--sampling.max-new-tokens", "4"],
    "ask": ["--sampling.max-new-tokens", "64"],
    "sandbox check": [], "sandbox run": [], "constitution show": [], "constitution check": [],
    "evaluate suites": [], "evaluate compare": [], "reward audit": ["--limit", "2"],
    "constitution redteam": ["--limit", "2", "--grow", "0", "--strategies", "direct", "role-play",
                             "--sampling.max-new-tokens", "4"],
    "constitution prefer": ["--limit", "2", "--sampling.max-new-tokens", "4"],
}


def commands(path: Path) -> list[str]:
    """The `$ trivet …` lines of a document's console blocks."""
    blocks = re.findall(r"```console\n(.*?)```", path.read_text(), re.S)
    return [line[2:] for block in blocks for line in block.splitlines() if line.startswith("$ ")]


@pytest.mark.real_weights
@pytest.mark.parametrize("path", [p for p in DOCS if commands(p)], ids=lambda p: p.name)
def test_every_command_shown_runs(path, tmp_path, monkeypatch) -> None:
    (tmp_path / "src").symlink_to(ROOT / "src")
    monkeypatch.chdir(tmp_path)
    for command in commands(path):
        words = shlex.split(command)
        assert words[0] == "trivet", command
        main([*words[1:], *QUICK.get(" ".join(words[1:3]), QUICK.get(words[1], []))])
    reports = any(c.startswith(("trivet report", "trivet evaluate")) for c in commands(path))
    assert bool(list(tmp_path.rglob("report.html"))) == reports


@pytest.mark.parametrize("path", DOCS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_files_are_there(path) -> None:
    text = path.read_text()
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", text):
        if not target.startswith(("http://", "https://", "mailto:")):
            assert (path.parent / target).exists(), f"{path.name} links to {target}"
    for name in re.findall(r"`((?:src|tests|recipes|benchmarks|docs)/[\w./-]+\.\w+)`", text):
        assert (ROOT / name).exists(), f"{path.name} names {name}"
    packages = ("policy|constitution|compress|reward|judge|models|generate|training|report|data|feedback|evaluate|guard"
                "|text|sandbox|serve")
    for name in re.findall(rf"`((?:{packages})/\w+\.py)`", text):
        assert (ROOT / "src/trivet" / name).exists(), f"{path.name} names {name}"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    text = (ROOT / "README.md").read_text()
    tree = text[text.index("    src/trivet/\n") : text.index("What is not here yet")]
    named = set(re.findall(r"^ {6}([\w.]+)/? ", tree, re.M))
    there = {p.name for p in (ROOT / "src/trivet").iterdir()
             if not p.name.startswith("_") and p.name not in {"py.typed", "recipes"}}
    assert named == there


def test_help_names_every_command_and_the_readme_too() -> None:
    readme = (ROOT / "README.md").read_text()
    others = ["run", "compress", "report", "ledger", "constitution", "guard", "sandbox", "serve", "ask", "models",
              "label"]
    for name in [*(s.command for s in STAGES.values()), *others]:
        assert f"  {name}" in help_text()
        assert f"`trivet {name}`" in readme


@pytest.mark.parametrize("name", [*STAGES, "run", "compress", "report", "ledger"])
def test_help_teaches_every_setting(name, capsys) -> None:
    """`--help` ends well and every setting has its words."""
    command = STAGES[name].command if name in STAGES else name
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    text = capsys.readouterr().out
    assert f"trivet {command}" in text
    if name in STAGES:
        for field, info in STAGES[name].config_type().model_fields.items():
            assert info.description, f"{name}: {field} has no words"


def test_make_targets_are_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test", "check", "figures", "vllm"):
        assert re.search(rf"^{target}:", makefile, re.M)
    ci = (ROOT / ".ci/run").read_text()
    assert "make check" in ci and "make test" in ci


def test_constraints_name_every_dependency() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {line.split("==")[0].lower().replace("_", "-")
              for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {re.split(r"[<>=\[ ]", d)[0].lower() for d in wanted}
    assert names <= pinned, names - pinned


def test_the_wheel_installs_and_runs_elsewhere(tmp_path) -> None:
    """Built from the repository, installed into another place, with its recipes and starter set inside."""
    import os
    import subprocess

    subprocess.run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"),
                    str(ROOT)], check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target),
                    str(wheel)], check=True, capture_output=True)
    code = ("import trivet, pathlib; from trivet.pipeline import shipped, starter; "
            "print(trivet.__file__); print(*shipped()); print(starter('rankings')); "
            "from trivet.report import page; print(pathlib.Path(page.__file__).with_name('template.html').exists()); "
            "from trivet.guard.calibration import DEFAULTS; print(DEFAULTS.exists()); "
            "from trivet.constitution.principles import load_constitution; print(len(load_constitution().principles))")
    out = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True,
                         env=os.environ | {"PYTHONPATH": str(target)}).stdout.splitlines()
    assert out[0].startswith(str(target))
    assert {"quickstart", "harmlessness"} <= set(out[1].split())
    assert out[2].startswith(str(target)) and Path(out[2]).stat().st_size > 100_000
    assert out[3:] == ["True", "True", "16"]
