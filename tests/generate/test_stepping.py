"""Steppers: rows that come and go draw what the engine's own `generate` draws."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from trivet.config import Device
from trivet.generate.config import Sampling
from trivet.generate.engines import load_engine
from trivet.generate.rows import Row, draw_rows
from trivet.generate.static_cache import SlotCache
from trivet.generate.stepping import Stepper, make_stepper
from trivet.generate.stops import StopStrings
from trivet.generate.torch_stepper import TorchStepper
from trivet.generate.waves import Waves
from trivet.training.device import prepare

SAMPLING = Sampling(temperature=1.0, max_new_tokens=12)


def loaded_of(folder: Path):
    return load_engine(folder, prepare(Device(device="cpu", threads=1)))


def answers(loaded, stepper: Stepper, prompts: list[list[int]], seeds: list[int], limits: list[int],
            leave_early: set[int] = frozenset()) -> dict[int, list[int]]:
    """Each prompt's answer; rows enter whenever there is room. leave_early: prompts whose rows leave after 3 tokens."""
    rows = {k: Row(k, 0, seeds[k], limits[k]) for k in range(len(prompts))}
    waiting, at_work = list(rows), dict[int, int]()
    none = StopStrings(None, ())

    def draw(keys: list[int], logits: torch.Tensor) -> None:
        draw_rows([rows[at_work[key]] for key in keys], logits, SAMPLING, loaded.stops, none)
        done = [key for key in keys if rows[at_work[key]].finished
                or (at_work[key] in leave_early and len(rows[at_work[key]].tokens) >= 3)]
        stepper.leave(done)
        for key in done:
            del at_work[key]

    while waiting or at_work:
        entering = []
        while waiting and len(entering) < 2 and stepper.fits(
                [len(prompts[k]) + limits[k] for k in [*entering, waiting[0]]]):
            entering.append(waiting.pop(0))
        if entering:
            keys, logits = stepper.enter([prompts[k] for k in entering], [1] * len(entering),
                                         [len(prompts[k]) + limits[k] for k in entering])
            at_work |= dict(zip(keys, entering, strict=True))
            draw(keys, logits)
        if at_work:
            draw(*stepper.step({key: rows[k].tokens[-1] for key, k in at_work.items()}))
    return {k: row.tokens for k, row in rows.items()}


def case(loaded, count: int = 9) -> tuple[list[list[int]], list[int], list[int]]:
    numbers = random.Random(5)
    prompts = [[numbers.randrange(5, 260) for _ in range(numbers.randrange(3, 40))] for _ in range(count)]
    return prompts, [numbers.randrange(10_000) for _ in range(count)], [numbers.randrange(2, 13) for _ in range(count)]


@pytest.mark.parametrize("width", [1, 4, 16])
def test_rows_that_come_and_go_draw_what_generate_draws(tiny_model_folder: Path, width: int) -> None:
    with loaded_of(tiny_model_folder) as loaded:
        prompts, seeds, limits = case(loaded)
        expected = [g[0].token_ids for g in loaded.engine.generate(prompts, SAMPLING, n=1, seeds=seeds, limits=limits)]
        stepper = make_stepper(loaded, width=width)
        assert isinstance(stepper, TorchStepper)
        assert [tuple(t) for t in answers(loaded, stepper, prompts, seeds, limits).values()] == expected


def test_a_row_that_leaves_changes_no_other(any_tiny_model_folder: Path) -> None:
    with loaded_of(any_tiny_model_folder) as loaded:
        prompts, seeds, limits = case(loaded)
        stepper = make_stepper(loaded, width=4)
        whole = answers(loaded, stepper, prompts, seeds, limits)
        some = answers(loaded, stepper, prompts, seeds, limits, leave_early={0, 3, 4, 8})
        assert all(some[k] == whole[k] for k in whole if k not in {0, 3, 4, 8})
        assert all(some[k] == whole[k][:3] for k in {0, 3, 4, 8})


def test_waves_draw_what_generate_draws(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded_of(tiny_model_folder) as loaded:
        prompts, seeds, limits = case(loaded)
        expected = [g[0].token_ids for g in loaded.engine.generate(prompts, SAMPLING, n=1, seeds=seeds, limits=limits)]
        monkeypatch.setattr("trivet.generate.decoding.decoding", lambda *_: "a test says so")
        stepper = make_stepper(loaded, width=4)
        assert isinstance(stepper, Waves)
        assert [tuple(t) for t in answers(loaded, stepper, prompts, seeds, limits).values()] == expected


def test_several_answers_share_one_prompt(tiny_model_folder: Path) -> None:
    with loaded_of(tiny_model_folder) as loaded:
        stepper = make_stepper(loaded, width=8)
        keys, logits = stepper.enter([[7, 8, 9], [11, 12]], [3, 1], [10, 10])
        assert len(keys) == len(set(keys)) == 4 and logits.shape[0] == 4
        assert torch.equal(logits[0], logits[2]) and not torch.equal(logits[0], logits[3])


def test_the_room_bounds_rows_and_a_long_row_makes_the_cache_narrow(tiny_model_folder: Path) -> None:
    with loaded_of(tiny_model_folder) as loaded:
        loaded.context = 4096  # rotary positions have no end; only rows' room is looked at here
        stepper = make_stepper(loaded, width=8, room=2048)
        assert isinstance(stepper, TorchStepper) and stepper.longest == 2048
        assert stepper.fits([200] * 8) and not stepper.fits([200] * 9)
        assert stepper.fits([500] * 4) and not stepper.fits([500] * 5)
        assert stepper.fits([2048]) and not stepper.fits([2048, 10])
        keys, _ = stepper.enter([[5, 6]] * 3, [1, 1, 1], [100] * 3)
        assert not stepper.fits([1100]), "with three rows at work there is no room for such a long one"
        stepper.leave(keys[:2])
        assert not stepper.fits([1100]) and stepper.fits([900])
        (long,), _ = stepper.enter([[5, 6]], [1], [900])
        assert not stepper.fits([10]), "two rows of 1024 places are all that the room holds"
        stepper.step({keys[2]: 7, long: 7})
        stepper.leave([long, keys[2]])
        assert stepper.fits([200] * 2)


def test_the_cache_grows_with_rows_at_work() -> None:
    from trivet.generate.static_cache import Prefix

    torch.manual_seed(0)
    prefix = Prefix([torch.randn(2, 3, 4)], [torch.randn(2, 3, 4)], torch.randn(9))
    cache = SlotCache(prefix, 4, 64)
    for _ in range(3):
        cache.enter(prefix)
    kept = cache.keys[:, :3, :3].clone()
    cache.require(200, 3)
    assert cache.keys.shape[1:3] == (3, 256) and torch.equal(cache.keys[:, :3, :3], kept)
    cache.require(10, 1)
    assert cache.keys.shape[1] == 3, "never fewer than are at work"


@pytest.mark.parametrize("form", ["gguf", "openvino"])
def test_other_runtimes_step_as_they_generate(form: str, tiny_model_folder: Path, tmp_path: Path) -> None:
    from trivet.compress.gguf_export import export_gguf
    from trivet.compress.openvino_export import export_openvino
    from trivet.models.source import resolve

    folder, source = tmp_path / form, resolve(str(tiny_model_folder))
    if form == "gguf":
        export_gguf(source, folder, "F32")
    else:
        export_openvino(source, folder, 32)
    with loaded_of(folder) as loaded:
        prompts, seeds, limits = case(loaded, 6)
        expected = [loaded.engine.generate([p], SAMPLING, n=1, seeds=[s], limits=[k])[0][0].token_ids
                    for p, s, k in zip(prompts, seeds, limits, strict=True)]
        stepper = make_stepper(loaded, width=3)
        found = [tuple(t) for t in answers(loaded, stepper, prompts, seeds, limits).values()]
        stepper.close()
    # rows side by side are other arithmetic: an answer may part from the one alone where two tokens are equally likely
    assert sum(a == b for a, b in zip(found, expected, strict=True)) >= 5
    assert all(a[0] == b[0] for a, b in zip(found, expected, strict=True))

