"""The filter of system calls, held against a second reading of its instructions."""

from __future__ import annotations

import struct

import pytest

from trivet.sandbox import seccomp

ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050026


def decide(code: bytes, audit: int, number: int, first: int = 0) -> int:
    """What the kernel would return: BPF, step by step."""
    held, at = 0, 0
    while True:
        kind, yes, no, value = struct.unpack_from("=HBBI", code, at * 8)
        at += 1
        if kind == 0x20:
            held = {0: number, 4: audit, 16: first & 0xFFFFFFFF}[value]
        elif kind == 0x06:
            return value
        else:
            true = {0x15: held == value, 0x35: held >= value, 0x45: bool(held & value)}[kind]
            at += yes if true else no


@pytest.mark.parametrize(("machine", "column"), [("x86_64", 0), ("aarch64", 1)])
def test_every_call_is_decided(machine: str, column: int) -> None:
    code, (audit, _) = seccomp.program(machine), seccomp.ARCHITECTURES[machine]
    denied = {n[column] for n in seccomp.DENIED.values()} - {None}
    clone, clone3, limit = seccomp.CLONE[column], seccomp.CLONE3[column], seccomp.PRLIMIT64[column]
    for number in range(600):
        wanted = EPERM if number in denied else ENOSYS if number == clone3 else ALLOW
        assert decide(code, audit, number) == wanted, number
    for flag in (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert decide(code, audit, clone, flag | 17) == EPERM
    assert decide(code, audit, clone, 0x3D0F00) == ALLOW  # a thread
    assert decide(code, audit, limit, 77) == EPERM
    assert decide(code, audit, seccomp.X32 + 1) == EPERM
    assert decide(code, audit ^ 1, 0) == 0x80000000


def test_no_number_stands_twice() -> None:
    for column in (0, 1):
        numbers = [n[column] for n in seccomp.DENIED.values() if n[column] is not None]
        assert len(numbers) == len(set(numbers))


def test_an_unknown_processor_is_told() -> None:
    assert "riscv64" in str(seccomp.missing("riscv64")) and seccomp.missing("x86_64") is None
