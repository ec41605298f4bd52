"""KPTI ping-pong and the micro guest: what their programs do, on the core and on the model."""

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from shadow_mmu import ConfigError, OpFlag, OpKind, Policy, TraceKind, Vm
from shadow_mmu.model import Machine
from shadow_mmu.ops import OUTCOME, TRACE, program
from shadow_mmu.workloads import microguest
from shadow_mmu.workloads.address_space import AddressSpace, FrameAllocator
from shadow_mmu.workloads.kernel import DIRECT_MAP, ENTRY_TEXT, KERNEL_TEXT, USER_TEXT
from shadow_mmu.workloads.kpti import kpti_pingpong
from shadow_mmu.workloads.runner import run_kpti
from shadow_mmu.workloads.workload import Workload

PTEWRITE_TLB_FLUSHES = 89


def cr3s(workload: Workload, vcpu: int = 0) -> list[int]:
    rows = workload.programs[vcpu]
    found: list[int] = rows["addr"][rows["kind"] == OpKind.WRITE_CR3].tolist()
    return found


def run_checked(workload: Workload, policy: str) -> Vm:
    """Run a workload on the core and check every gpa that it expects."""
    vm = Vm(workload.memory, vcpus=len(workload.programs), policy=policy)
    vm.memory.write(0, workload.image.words)
    report = vm.run(workload.programs, outcomes=True)
    assert report.faults == 0
    assert report.outcomes is not None
    for rows, outcomes in zip(workload.programs, report.outcomes, strict=True):
        checked = rows["flags"] & OpFlag.CHECK > 0
        assert checked.any()
        assert (outcomes["code"] == 0).all()
        assert (outcomes["value"][checked] == rows["expect"][checked]).all()
    assert vm.audit() == []
    return vm


def test_a_fetch_follows_each_cr3_write_and_pairs_differ_in_bit_12() -> None:
    workload = kpti_pingpong(vcpus=2, processes=3, switches=101, pairs=2)
    for vcpu in range(2):
        rows = workload.programs[vcpu]
        places = np.flatnonzero(rows["kind"] == OpKind.WRITE_CR3)
        assert len(places) == 102
        assert (rows["kind"][places + 1] == OpKind.FETCH).all()
        found = cr3s(workload, vcpu)
        assert len({value & ~0x1000 for value in found}) == 3
        assert len(set(found)) == 6
        # Never the same value twice; a process is left, and entered, by its kernel side.
        for before, after in itertools.pairwise(found):
            assert before != after
            assert before ^ after == 0x1000 or not (before | after) & 0x1000
    assert set(cr3s(workload, 0)).isdisjoint(cr3s(workload, 1))


def test_the_schedule_is_as_described() -> None:
    names: dict[int, int] = {}
    for value in cr3s(kpti_pingpong(vcpus=1, processes=2, switches=12, pairs=2)):
        names.setdefault(value & ~0x1000, len(names))
    found = cr3s(kpti_pingpong(vcpus=1, processes=2, switches=12, pairs=2))
    text = " ".join(f"{'U' if value & 0x1000 else 'K'}{names[value & ~0x1000]}" for value in found)
    assert text == "U0 K0 U0 K0 U0 K0 K1 U1 K1 U1 K1 K0 U0"


def test_the_users_half_cannot_be_executed_in_the_kernels_table() -> None:
    workload = kpti_pingpong(vcpus=1, switches=2)
    user, kernel = cr3s(workload)[:2]
    tops = [AddressSpace(workload.image, FrameAllocator(0, 0), root=cr3) for cr3 in (user, kernel)]
    entries = [top.entry(USER_TEXT, 4) for top in tops]
    assert [entry >> 63 for entry in entries] == [0, 1]
    assert entries[0] == entries[1] & ~(1 << 63)
    # The user's table has nothing of the kernel's but the entry code.
    assert tops[0].entry(KERNEL_TEXT, 4) == tops[0].entry(DIRECT_MAP, 4) == 0
    assert tops[0].entry(ENTRY_TEXT, 4) == tops[1].entry(ENTRY_TEXT, 4) != 0


@pytest.mark.parametrize("edits", [0.0, 0.3, 1.0, 2.5])
def test_edits_come_at_the_given_rate_and_move_the_page(edits: float) -> None:
    workload = kpti_pingpong(vcpus=1, processes=2, switches=2000, edits=edits, seed=3)
    rows = workload.programs[0]
    stores = np.flatnonzero(rows["kind"] == OpKind.STORE)
    assert len(stores) == pytest.approx(2000 * edits, rel=0.1, abs=0)
    assert (rows["kind"][stores + 1] == OpKind.INVLPG).all()
    assert (rows["kind"][stores + 2] == OpKind.READ).all()
    assert (rows["addr"][stores + 1] == rows["addr"][stores + 2]).all()
    # Each edit of an entry moves its page: from where the image has it to its other frame, and back.
    now: dict[int, int] = {}
    for entry, value in zip(rows["expect"][stores].tolist(), rows["value"][stores].tolist(), strict=True):
        before = now.get(entry, int.from_bytes(workload.image.read(entry, 8), "little"))
        assert before >> 12 != value >> 12
        assert before & 0xFFF == value & 0xFFF
        now[entry] = value
    for policy in ("locked", "seed", "lru:3"):
        run_checked(workload, policy).close()


def test_the_same_seed_makes_the_same_programs() -> None:
    def made(seed: int) -> bytes:
        return b"".join(one.tobytes() for one in kpti_pingpong(switches=500, edits=0.5, seed=seed).programs)

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize("processes", [1, 2])
def test_E041_ping_pong_takes_no_lock_once_warm(processes: int) -> None:  # noqa: N802  the id of the rule
    """One process under ``seed``; two, which have four CR3s, with three cached roots and the current one."""
    counts = []
    for switches in (200, 400):
        workload = kpti_pingpong(vcpus=1, processes=processes, switches=switches)
        with run_checked(workload, "seed" if processes == 1 else "lru:3") as vm:
            counts.append(vm.stats.lock.total)
            assert vm.stats.cr3.lockless >= switches - 4
    assert counts[0] == counts[1]


def test_core_and_model_run_it_alike() -> None:
    workload = kpti_pingpong(vcpus=1, processes=2, switches=300, edits=0.2)
    with run_checked(workload, "lru:3") as vm:
        model = Machine([(0, workload.memory)], 1, "lru:3")
        model.memory.write(0, workload.image.words.tobytes())
        for row in workload.programs[0].tolist():
            assert model.execute(row).code == 0
        assert model.audit() == []
        assert dict(vm.stats.counters) == model.stats()["counters"]
        assert vm.state_words().tobytes() == model.state_words()


@pytest.mark.parametrize(
    "options",
    [
        {"vcpus": 0}, {"vcpus": 1025}, {"processes": 0}, {"switches": 0}, {"switches": 10**9}, {"edits": -1.0},
        {"edits": float("nan")}, {"edits": float("inf")}, {"seed": -1}, {"pairs": 0}, {"data_pages": 513}, {"vcpus": 1.5},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        kpti_pingpong(**options)


def test_the_report_compares_policies() -> None:
    report = run_kpti(["locked", "seed"], switches=500, edits=0.05, lock_times=True)
    assert report.ok
    locked, seed = report.results
    assert (locked.policy, seed.policy) == (Policy.locked(), Policy.seed())
    assert locked.stats.cr3.lockless == 0 < seed.stats.cr3.lockless
    assert locked.stats.lock.total > 3 * 1000 > seed.stats.lock.total
    assert locked.stats.lock.wait_ns is not None
    assert report.as_dict()["results"][1]["switches_per_second"] > 0
    with pytest.raises(ConfigError, match="no policy"):
        run_kpti([])


def micro(policy: str, iterations: int, *, edit: bool, native: bool) -> tuple[dict[str, int], Counter[int]]:
    """Run a scenario; returns counters and events by kind."""
    operations = microguest.program_of(iterations, edit=edit)
    image = microguest.image()
    if native:
        with Vm(microguest.MEMORY, vcpus=1, policy=policy, trace=True) as vm:
            vm.memory.write(0, image.words)
            (found,) = vm.run([program(operations)], outcomes=True).outcomes or ()
            assert found.dtype == OUTCOME
            assert not found["code"].any()
            counters, trace = dict(vm.stats.counters), vm.trace()
    else:
        model = Machine([(0, microguest.MEMORY)], 1, policy, trace=True)
        model.memory.write(0, image.words.tobytes())
        for op in operations:
            outcome = model.execute(op)
            assert outcome.code == 0
            assert not op.flags & OpFlag.CHECK or outcome.value == op.expect
        counters, trace = model.stats()["counters"], np.frombuffer(model.take_trace(), TRACE)
    return counters, Counter(trace["kind"].tolist())


@pytest.mark.parametrize("native", [False, True], ids=["model", "core"])
def test_pingpong1_counts_as_on_real_kvm(native: bool) -> None:  # noqa: FBT001  parametrized
    counters, events = micro("lru:3", 50, edit=False, native=native)
    assert {name: counters[name] for name in ("pf_fixed", "mmu_cache_miss", "invlpg", "mmu_unsync")} == {
        "pf_fixed": 2,
        "mmu_cache_miss": 8,
        "invlpg": 0,
        "mmu_unsync": 0,
    }
    assert counters["remote_tlb_flush_requests"] == 0
    # One for each MOV CR3 of the iterations, and one for the first, which loads the start's CR3.
    assert counters["tlb_flush"] == 100 + 1
    assert events == {TraceKind.GET_PAGE: 8, TraceKind.SET_SPTE: 2}


@pytest.mark.parametrize("native", [False, True], ids=["model", "core"])
def test_E063_ptewrite1_counts_by_the_modern_rules(native: bool) -> None:  # noqa: FBT001, N802  parametrized; the id
    """INVLPG drops the entry whose gfn changed and does not refill it: 2 + 3 + 29 x 2 faults."""
    counters, events = micro("lru:3", 30, edit=True, native=native)
    assert (counters["pf_fixed"], counters["invlpg"], counters["mmu_cache_miss"], counters["mmu_unsync"]) == (
        63,
        30,
        8,
        1,
    )
    assert counters["remote_tlb_flush_requests"] == 58
    assert counters["tlb_flush"] == PTEWRITE_TLB_FLUSHES + 1
    assert events == {
        TraceKind.GET_PAGE: 8,
        TraceKind.UNSYNC_PAGE: 30,
        TraceKind.SYNC_PAGE: 29,
        TraceKind.SET_SPTE: 63,
    }


def test_table_sets_are_where_the_guest_has_them() -> None:
    assert [microguest.table_set(k) for k in range(4)] == [0x100000, 0x110000, 0x120000, 0x130000]
    with pytest.raises(ConfigError, match="table set 4"):
        microguest.table_set(4)
