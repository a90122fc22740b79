"""What stages cost: that it is measured, that it adds up over interruptions, that it survives `kill -9`."""

from __future__ import annotations

import json
import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from trivet import ledger
from trivet.config import Device, StageConfig
from trivet.errors import TrivetError
from trivet.ledger import Calls, Entry, Labelling, Meter, PackageEnergy, Spent
from trivet.runs import Run, Summary, execute
from trivet.training.device import prepare
from trivet.training.probe import GpuEnergy, TorchProbe

OLD = {"schema_version": 1, "name": "ppo", "stage": "ppo", "started": "2026-01-02T03:04:05Z", "seconds": 61.0,
       "cpu_seconds": 100.0, "peak_memory_bytes": 2**30, "tokens": {"generated": 12, "scored": 30}, "attempts": 1,
       "machine": "a small machine"}


class Config(StageConfig):
    out: Path = Path("out")


def only(folder: Path) -> Entry:
    (entry,) = ledger.read(folder / "ledger.jsonl")
    return entry


def product(run: Run) -> None:
    """A product of 2·3·4·5 operations, forward, and twice as many backward."""
    prepare(Device(threads=1, device="cpu"), run.meter)
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)
    (a @ b).sum().backward()


def test_a_stage_is_measured(tmp_path) -> None:
    def work(config: Any, run: Run) -> Summary:
        product(run)
        run.meter.count("prompt", 7)
        run.meter.count("generated", 3)
        run.meter.count("trained", 20)
        run.meter.endpoint("judge", requests=2, input_tokens=100, output_tokens=4)
        run.meter.endpoint("judge", requests=1, input_tokens=50)
        run.meter.labelling = Labelling(people_seconds=90, people_rankings=3, source="x")
        kept = torch.ones(40_000_000)
        time.sleep(0.3)
        end = time.monotonic() + 0.2
        while time.monotonic() < end:
            pass
        return Summary(size=kept.numel())

    began = time.monotonic()
    execute("s", Config(out=tmp_path / "s"), work, Summary)
    wall = time.monotonic() - began
    found = only(tmp_path)
    assert found.schema_version == 2
    assert 0.5 <= found.seconds <= wall and found.seconds > 0.9 * wall - 0.05
    assert 0.15 < found.cpu_seconds < found.seconds + 0.5
    assert found.flops == {"forward": 120, "backward": 240} and found.total_flops == 360
    assert (found.tokens_in, found.tokens_out) == (27, 3)
    assert found.endpoints == {"judge": Calls(requests=3, input_tokens=150, output_tokens=4)}
    assert found.people_seconds == 90
    assert found.peak_memory_bytes > 160_000_000
    assert (found.gpu_seconds, found.gpu_peak_memory_bytes) == (0.0, 0)
    assert found.machine == ledger.machine()


def test_torch_is_as_before_after_a_stage_even_one_that_fails(tmp_path) -> None:
    before = functional.linear, torch.matmul

    def work(config: Any, run: Run) -> Summary:
        product(run)
        assert functional.linear is not before[0]
        raise TrivetError("something", mend="mend it")

    with pytest.raises(TrivetError):
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    assert (functional.linear, torch.matmul) == before
    # a run that nobody closes, as in a notebook: when it is gone
    run = Run(tmp_path / "loose")
    product(run)
    assert functional.linear is not before[0]
    del run
    assert (functional.linear, torch.matmul) == before


def test_what_attempts_spent_adds_up(tmp_path) -> None:
    def work(config: Any, run: Run) -> Summary:
        product(run)
        run.meter.count("generated", 5)
        run.meter.endpoint("judge", requests=1, output_tokens=2)
        (run.folder / "work").touch()  # a folder with nothing in it is no interrupted run
        time.sleep(0.1)
        if not (run.folder / "again").exists():
            (run.folder / "again").touch()
            raise KeyboardInterrupt
        return Summary()

    with pytest.raises(KeyboardInterrupt):
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    assert not (tmp_path / "ledger.jsonl").exists()
    execute("s", Config(out=tmp_path / "s"), work, Summary)
    found = only(tmp_path)
    assert found.attempts == 2 and found.seconds >= 0.2
    assert found.flops == {"forward": 240, "backward": 480}
    assert found.tokens == {"generated": 10}
    assert found.endpoints == {"judge": Calls(requests=2, output_tokens=4)}


def test_the_record_of_an_older_version_is_gone_on_with(tmp_path) -> None:
    def work(config: Any, run: Run) -> Summary:
        if not (run.folder / "again").exists():
            (run.folder / "again").touch()
            raise KeyboardInterrupt
        return Summary()

    with pytest.raises(KeyboardInterrupt):
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    state = json.loads((tmp_path / "s" / ".state.json").read_text())
    del state["spent"]
    (tmp_path / "s" / ".state.json").write_text(json.dumps(state | {"seconds": 1000.0}))
    execute("s", Config(out=tmp_path / "s"), work, Summary)
    assert only(tmp_path).seconds > 1000


def test_a_damaged_record_of_what_was_spent_is_refused(tmp_path) -> None:
    def work(config: Any, run: Run) -> Summary:
        (run.folder / "work").touch()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    path = tmp_path / "s" / ".state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"spent": {"seconds": "long"}}))
    with pytest.raises(TrivetError, match="--overwrite") as raised:
        execute("s", Config(out=tmp_path / "s"), work, Summary)
    assert raised.value.field == "spent"


KILLED = """
import sys, time
from pathlib import Path
from trivet import ledger
from trivet.config import StageConfig
from trivet.runs import Summary, execute
ledger.KEEP_EVERY = 0.05

class Config(StageConfig):
    out: Path = Path("out")

def work(config, run):
    for _ in range(10 if run.path("again").exists() else 10_000):
        run.meter.count("generated", 1)
        run.log("metrics", {"step": 1})
        time.sleep(0.01)
    return Summary()

execute("s", Config(out=Path(sys.argv[1])), work, Summary)
"""


def test_kill_9_loses_what_came_since_the_last_writing_and_no_more(tmp_path) -> None:
    out = tmp_path / "s"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(out)])
    log = out / "metrics.jsonl"
    while not log.exists() or log.read_text().count("\n") < 60:
        time.sleep(0.01)
        assert process.poll() is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = log.read_text().count("\n")
    (out / "again").touch()
    subprocess.run([sys.executable, "-c", KILLED, str(out)], check=True)
    found = only(tmp_path)
    assert found.attempts == 2
    assert done - 15 <= found.tokens["generated"] - 10 <= done + 1
    assert found.seconds > 0.5


def test_old_lines_are_read_beside_new_ones(tmp_path) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(OLD) + "\n" + json.dumps(OLD | {"name": "reward", "seconds": 1.0}) + '\n{"torn')
    ledger.append(path, Entry(**(OLD | {"schema_version": 2, "flops": {"forward": 5, "backward": 1}})))
    ppo, reward = ledger.read(path)
    assert ppo.total_flops == 6 and reward.total_flops is None
    assert (reward.tokens_in, reward.tokens_out) == (30, 12)
    assert reward.energy_joules is None and reward.people_seconds == 0
    assert [ppo.name, reward.name] == ["ppo", "reward"]
    assert ledger.read(tmp_path / "nothing") == []


@pytest.mark.parametrize(("line", "field"), [("[1]", None), ('{"name": "x"}', "stage"),
                                             (json.dumps(OLD | {"seconds": -1}), "seconds")])
def test_a_line_that_is_no_entry(tmp_path, line, field) -> None:
    (tmp_path / "ledger.jsonl").write_text(f"{json.dumps(OLD)}\n{line}\n")
    with pytest.raises(TrivetError) as raised:
        ledger.read(tmp_path / "ledger.jsonl")
    assert (raised.value.line, raised.value.field) == (2, field)


# --- energy ---------------------------------------------------------------------------------------------------


def zone(folder: Path, place: str, name: str, joules: int, span: int = 1000) -> Path:
    """A counter as /sys/class/powercap has it: `place` its folder, `name` what it is of."""
    (folder / place).mkdir(parents=True)
    (folder / place / "name").write_text(f"{name}\n")
    (folder / place / "max_energy_range_uj").write_text(f"{span * 1_000_000}\n")
    (folder / place / "energy_uj").write_text(f"{joules * 1_000_000}\n")
    return folder / place / "energy_uj"


def test_energy_of_the_packages_adds_up_round_the_counters_end(tmp_path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", "package-0", 990), zone(tmp_path, "intel-rapl:1", "package-1", 10)
    zone(tmp_path, "intel-rapl:0:0", "core", 5)  # a part of the first package
    energy = PackageEnergy(tmp_path)
    assert energy.joules() == 0
    first.write_text("20000000\n")  # over its end at 1000: 30 J
    second.write_text("15000000\n")
    assert energy.joules() == pytest.approx(35)
    first.write_text("21000000\n")
    assert energy.joules() == pytest.approx(36)
    second.unlink()
    assert energy.joules() is None  # one package of two is not the machine


def test_the_platforms_counter_which_holds_the_packages_is_not_added(tmp_path) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 10)
    platform = zone(tmp_path, "intel-rapl:1", "psys", 10)
    energy = PackageEnergy(tmp_path)
    package.write_text("14000000\n")
    platform.write_text("19000000\n")
    assert energy.joules() == pytest.approx(4)
    package.parent.joinpath("name").write_text("psys\n")
    assert PackageEnergy(tmp_path).joules() is None  # no package is told of


def test_energy_that_the_machine_does_not_tell_is_not_known(tmp_path) -> None:
    assert PackageEnergy(tmp_path / "nothing").joules() is None
    zone(tmp_path, "intel-rapl:0", "package-0", 1).write_text("secret")
    assert PackageEnergy(tmp_path).joules() is None
    assert GpuEnergy("GPU-1234", library="libnothing.so").joules() is None


def test_energy_is_summed_where_all_of_it_is_known() -> None:
    known = Spent(seconds=1, energy_joules=5, energy_sources=["processor packages"])
    assert known.plus(known).energy_joules == 10
    assert known.plus(Spent(seconds=1)).energy_joules is None
    assert known.plus(known.model_copy(update={"energy_sources": ["GPU"]})).energy_joules is None


def test_a_meter_tells_the_energy_of_packages_and_probe_together(tmp_path, monkeypatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 1)
    monkeypatch.setattr(PackageEnergy, "__init__", lambda self, folder=tmp_path, was=PackageEnergy.__init__:
                        was(self, folder))

    class Probe:
        def read(self) -> Spent:
            return Spent(energy_joules=7.0, energy_sources=["GPU"], gpu_seconds=2.0, gpu_peak_memory_bytes=9)

        def close(self) -> None:
            pass

    meter = Meter()
    meter.probe(Probe)
    counter.write_text("4000000")
    entry = meter.entry("a", "b")
    assert (entry.energy_joules, entry.energy_sources) == (10.0, ["processor packages", "GPU"])
    assert (entry.gpu_seconds, entry.gpu_peak_memory_bytes) == (2.0, 9)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_is_measured() -> None:
    probe = TorchProbe("cuda")
    a = torch.randn(2048, 2048, device="cuda")
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        a = torch.nn.functional.normalize(a @ a)
        torch.cuda.synchronize()
    found = probe.read()
    probe.close()
    assert found.flops["forward"] >= 2 * 2048**3
    assert 1.0 <= found.gpu_seconds < 1.5
    assert found.gpu_peak_memory_bytes >= 2 * 2048 * 2048 * 4
    assert found.energy_joules is None or 20 < found.energy_joules < 1500


def test_the_memory_peak_is_the_stages_own(tmp_path) -> None:
    if not os.access("/proc/self/clear_refs", os.W_OK):
        pytest.skip("not Linux")
    meter = Meter()
    # pages of our own: a heap that had room for them would not have grown
    with mmap.mmap(-1, 300_000_000) as big:
        for page in range(0, len(big), mmap.PAGESIZE):
            big[page] = 1
    first = meter.spent().peak_memory_bytes
    assert Meter().spent().peak_memory_bytes < first - 200_000_000


class FakeNvml:
    """The driver's library, as far as it is asked; its counter rises by 3 J a reading."""

    def __init__(self, tells: bool = True) -> None:
        self.millijoules, self.tells, self.names = 1_000_000, tells, []

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByUUID(self, name: Any, handle: Any) -> int:
        self.names.append(name.value)
        return 0

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: Any, value: Any) -> int:
        self.millijoules += 3000
        value._obj.value = self.millijoules
        return 0 if self.tells else 3  # NVML_ERROR_NOT_SUPPORTED


@pytest.fixture
def two_gpus(monkeypatch) -> dict[int, int]:
    """torch as it is with two GPUs, of which the first is used; the peaks by device."""
    peaks = {0: 5_000, 1: 0}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda i: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda i: peaks[i])
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda i: type("P", (), {"uuid": f"uuid-{i}"}))
    return peaks


@pytest.mark.parametrize("tells", [True, False])
def test_gpus_are_measured_by_what_torch_and_the_driver_say(two_gpus, monkeypatch, tells) -> None:
    library = FakeNvml(tells)
    monkeypatch.setattr("trivet.training.probe.ctypes.CDLL", lambda name: library)
    probe = TorchProbe("cuda")
    try:
        time.sleep(0.05)
        one = probe.read()
        two_gpus[1] = 7_000
        both = probe.read()
    finally:
        probe.close()
    assert library.names == [b"GPU-uuid-0", b"GPU-uuid-1"]
    assert (one.gpu_peak_memory_bytes, both.gpu_peak_memory_bytes) == (5_000, 12_000)
    assert 0.05 <= one.gpu_seconds < 1 and both.gpu_seconds > 1.9 * one.gpu_seconds
    # two readings at the start, then one: 6 J after the first device's; None where the driver does not tell
    assert one.energy_joules == (6.0 if tells else None)
    assert one.energy_sources == (["GPU"] if tells else [])
    assert both.flops == {"forward": 0, "backward": 0}


def test_of_several_processes_one_counts_for_all_and_each_its_shares() -> None:
    main, other = Meter(), Meter(beside=True)
    for meter, scored in ((main, 30), (other, 12)):
        meter.count("trained", 100)
        meter.count("scored", scored, share=True)
    main.beside([other.spent()])
    assert main.spent().tokens == {"trained": 100, "scored": 42}
