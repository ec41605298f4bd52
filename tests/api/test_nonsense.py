"""Hypothesis feeds the API nonsense: only typed exceptions come out, and an error changes nothing."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.api.guest import GVA, OUTSIDE, PT_GVA, READ_ONLY, SIZE, boot

from shadow_mmu import GuestEvent, MmioExit, Policy, ShadowMmuError, Vm, ops

EDGES = [0, 1, -1, 0xFFF, 0x1000, GVA, READ_ONLY, OUTSIDE, PT_GVA, 1 << 46, 1 << 47, (1 << 64) - 1, 1 << 64, -(1 << 70)]
Calls = st.SearchStrategy[tuple[str, tuple[Any, ...], dict[str, Any]]]
integers = st.sampled_from(EDGES) | st.integers(-(1 << 65), 1 << 65) | st.integers(0, SIZE)
anything = integers | st.none() | st.floats() | st.text(max_size=4) | st.binary(max_size=4) | st.booleans()
kinds = st.sampled_from(["read", "write", "fetch"]) | st.text(max_size=5)
sizes = st.sampled_from([1, 2, 4, 8]) | integers
rights = st.fixed_dictionaries({}, optional={"user": st.booleans(), "ac": st.booleans()})

vcpu_calls: Calls = st.one_of(
    st.tuples(
        st.sampled_from(["write_cr0", "write_cr3", "write_cr4", "write_efer", "invlpg"]),
        st.tuples(integers),
        st.just({}),
    ),
    st.tuples(st.just("access"), st.tuples(integers, kinds), rights),
    st.tuples(st.just("translate"), st.tuples(integers, kinds), rights),
    st.tuples(st.just("translate_many"), st.tuples(st.lists(anything, max_size=3) | anything, kinds), rights),
    st.tuples(st.just("load"), st.tuples(integers, sizes), rights),
    st.tuples(st.just("store"), st.tuples(integers, integers, sizes), rights),
)
memory_calls: Calls = st.one_of(
    st.tuples(st.just("read"), st.tuples(anything, anything), st.just({})),
    st.tuples(st.just("read_array"), st.tuples(anything, anything), st.just({})),
    st.tuples(st.just("write"), st.tuples(anything, st.binary(max_size=20) | anything), st.just({})),
)
op_fields = st.tuples(
    st.integers(0, 255), st.integers(0, 255), st.integers(0, 3), st.integers(0, 9) | st.integers(0, (1 << 32) - 1),
    st.sampled_from([edge for edge in EDGES if 0 <= edge < 1 << 64]) | st.integers(0, (1 << 64) - 1), st.integers(0, (1 << 64) - 1), st.just(0),
)  # fmt: skip


@pytest.fixture(scope="module", params=["locked", "seed", "lru:3"])
def vm(request: pytest.FixtureRequest) -> Iterator[Vm]:
    with Vm(SIZE, vcpus=2, policy=request.param) as machine:
        boot(machine)
        yield machine


def state(vm: Vm) -> bytes:
    return vm.state_words().tobytes() + vm.memory.read(0, SIZE)


def check(vm: Vm, call: Any, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401  nonsense of any type
    before = state(vm)
    try:
        call(*args, **kwargs)
    except GuestEvent:
        pass  # what the guest runs into may change the machine: a fault counts, sets A, evicts
    except ShadowMmuError:
        assert state(vm) == before
    assert vm.audit() == []


@given(st.lists(st.tuples(st.integers(0, 1), vcpu_calls), min_size=1, max_size=8))
def test_vcpus_take_nonsense(vm: Vm, calls: list[tuple[int, tuple[str, tuple[Any, ...], dict[str, bool]]]]) -> None:
    for index, (name, args, kwargs) in calls:
        check(vm, getattr(vm.vcpus[index], name), *args, **kwargs)


@given(st.lists(memory_calls, min_size=1, max_size=5))
def test_memory_takes_nonsense(vm: Vm, calls: list[tuple[str, tuple[Any, ...], dict[str, bool]]]) -> None:
    for name, args, _ in calls:
        check(vm, getattr(vm.memory, name), *args)


@given(st.lists(op_fields, max_size=6))
def test_programs_take_nonsense(rows: list[tuple[int, ...]]) -> None:
    with Vm(SIZE, vcpus=2) as vm:
        boot(vm)
        try:
            report = vm.run([ops.program([ops.Op(*row) for row in rows])], outcomes=True)
        except ShadowMmuError:
            pass
        else:
            assert report.ops_done == (len(rows),)
        assert vm.audit() == []


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("memory", "vcpus", "policy", "tlb_entries", "cpu"), anything)))
def test_constructors_take_nonsense(options: dict[str, Any]) -> None:
    try:
        with Vm(**{"memory": SIZE, "vcpus": 1, **options}) as vm:
            assert vm.memory.size > 0
            assert 1 <= len(vm.vcpus) <= 1024
    except ShadowMmuError:
        pass


@given(anything | st.from_regex(r"lru:-?\d{0,3}", fullmatch=True))
def test_policies_take_nonsense(text: object) -> None:
    with suppress(ShadowMmuError):
        assert str(Policy.parse(text)) == text


@given(st.sampled_from(["<u8", ">u8", "<u4", "O", "V32", "<f8"]), st.integers(0, 3), st.booleans())
def test_arrays_of_any_kind_are_taken_or_refused(dtype: str, length: int, strided: bool) -> None:  # noqa: FBT001  drawn
    array = np.zeros(2 * length if strided else length, dtype)[:: 2 if strided else 1]
    with Vm(SIZE, vcpus=1) as vm:
        for call in (
            lambda: vm.memory.write(0, array),
            lambda: vm.run([array]),
            lambda: vm.vcpus[0].translate_many(array),
            lambda: vm.run([], pages=array),
        ):
            with suppress(ShadowMmuError):
                call()


def test_what_comes_out_of_an_access_is_a_gpa_or_an_exit(vm: Vm) -> None:
    for gva in (GVA, OUTSIDE):
        with suppress(GuestEvent):
            assert isinstance(vm.vcpus[0].access(gva), int | MmioExit)
