"""Fork churn and thread churn: what their programs do, on threads of the core and, event by event, on core and model."""

import itertools
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from tests.differential.machines import IgnoresInvlpg, planted

from shadow_mmu import ConfigError, OpFlag, OpKind, Vm
from shadow_mmu.differential import ModelSubject, NativeSubject, compare
from shadow_mmu.ops import Op, Program
from shadow_mmu.types import PAGE_SIZE
from shadow_mmu.workloads.fork import fork_churn
from shadow_mmu.workloads.kernel import DIRECT_MAP, TABLE, USER_DATA
from shadow_mmu.workloads.kpti import kpti_pingpong
from shadow_mmu.workloads.random import Stream
from shadow_mmu.workloads.threads import STACKS, thread_churn
from shadow_mmu.workloads.workload import Workload
from shadow_mmu.workloads.world import MachineConfig

POLICIES = ("locked", "seed", "lru:0", "lru:3", "lru:8")
MAKERS: list[tuple[str, Callable[..., Workload], dict[str, Any]]] = [
    ("fork", fork_churn, {"forks": 12}),
    ("fork-deep", fork_churn, {"forks": 12, "depth": 4, "execs": 1, "pages": 5, "child_writes": 5, "parent_writes": 0}),
    ("threads", thread_churn, {"cycles": 24, "lifetime": 3, "moves": 0.7}),
    ("threads-crowded", thread_churn, {"cycles": 12, "pages": 20, "shared": 1, "moves": 1, "syscalls": 0}),
]
SMALL: list[tuple[str, Callable[..., Workload], dict[str, Any]]] = [
    ("fork", fork_churn, {"forks": 3, "pages": 6, "child_writes": 3, "parent_writes": 2, "depth": 2}),
    ("threads", thread_churn, {"cycles": 5, "pages": 2, "stack": 2, "shared": 4, "lifetime": 2, "moves": 0.8}),
]


def ran(workload: Workload, policy: str) -> Vm:
    """Run a workload on threads of the core and see that it came out as it must."""
    vm = Vm(workload.memory, vcpus=len(workload.programs), policy=policy)
    vm.memory.write(0, workload.image.words)
    report = vm.run(workload.programs, outcomes=True)
    assert report.outcomes is not None
    assert workload.wrong(report.outcomes) == []
    assert report.faults == workload.meant_faults
    assert vm.audit() == []
    assert vm.stats.cr3.writes == workload.switches
    return vm


def interleaved(workload: Workload, policy: str, seed: int) -> Stream:
    """Give the guest's memory as pages, then the programs in turns of a random number of operations."""
    rng = random.Random(seed)  # noqa: S311  a repeatable test, no secret
    rows = workload.image.words.reshape(-1, 512)
    used = np.flatnonzero(rows.any(axis=1)).tolist()
    ops = [Op(OpKind.HOST_PAGE, aux=row, addr=page << 12) for row, page in enumerate(used)]
    left = [[Op(*row) for row in program.tolist()] for program in workload.programs]
    while any(left):
        one = rng.choice([program for program in left if program])
        count = rng.randint(1, 12)
        ops += one[:count]
        del one[:count]
    config = MachineConfig(policy, vcpus=len(workload.programs), slots=((0, workload.memory, False),))
    return Stream(config, tuple(ops), tuple(tuple(rows[page].tolist()) for page in used))


def kinds(program: Program) -> set[int]:
    return set(program["kind"].tolist())


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("vcpus", [1, 3])
@pytest.mark.parametrize(("make", "options"), [one[1:] for one in MAKERS], ids=[one[0] for one in MAKERS])
def test_D5_every_access_comes_out_as_it_must_on_threads(  # noqa: N802  the id of the rule
    make: Callable[..., Workload], options: dict[str, Any], vcpus: int, policy: str
) -> None:
    ran(make(vcpus=vcpus, seed=5, **options), policy).close()


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:1", "lru:3"])
@pytest.mark.parametrize(("make", "options"), [one[1:] for one in SMALL], ids=[one[0] for one in SMALL])
def test_core_and_model_do_the_same_event_by_event(
    make: Callable[..., Workload], options: dict[str, Any], policy: str
) -> None:
    workload = make(vcpus=2, seed=2, **options)
    stream = interleaved(workload, policy, seed=9)
    assert compare(stream, NativeSubject, ModelSubject, audit_every=200, oracle=True) is None


def test_a_machine_that_ignores_invlpg_is_noticed() -> None:
    stream = interleaved(SMALL[1][1](vcpus=2, seed=2, **SMALL[1][2]), "lru:3", seed=9)
    assert compare(stream, NativeSubject, planted(IgnoresInvlpg), every=64) is not None


def test_a_wrong_gpa_value_or_fault_is_noticed() -> None:
    workload = fork_churn(vcpus=1, forks=2)
    (program,), (meant,) = workload.programs, workload.faults
    vm = Vm(workload.memory, vcpus=1)
    vm.memory.write(0, workload.image.words)
    (good,) = vm.run(workload.programs, outcomes=True).outcomes or ()
    assert workload.wrong([good]) == []
    checked = int(np.flatnonzero((program["flags"] & OpFlag.CHECK) != 0)[0])
    loaded = int(np.flatnonzero(program["kind"] == OpKind.LOAD)[0])
    for row, field in ((checked, "value"), (loaded, "value"), (int(meant[0, 0]), "error"), (5, "code")):
        bad = good.copy()
        bad[field][row] ^= 2
        (line,) = workload.wrong([bad])
        assert f"operation {row}:" in line
    assert "done" in workload.wrong([good[:-1]])[0]


def test_a_fork_protects_both_sides_and_tables_are_used_again() -> None:
    workload = fork_churn(vcpus=1, forks=6, pages=4, depth=1, execs=0, child_writes=2, parent_writes=1)
    (program,), (meant,) = workload.programs, workload.faults
    stores = program[(program["kind"] == OpKind.STORE) & (program["addr"] >= DIRECT_MAP)]
    places, words = stores["addr"] - np.uint64(DIRECT_MAP), stores["value"]
    # Each frame that holds a table of the first child holds one of the last child's too: it was freed and taken again.
    roots = program["addr"][program["kind"] == OpKind.WRITE_CR3]
    assert len(set(roots.tolist())) == 4, "two processes, two roots each, whatever the number of forks"
    # A copied entry keeps its frame, and neither side may write it.
    leaf = (words != 0) & (words & np.uint64(0x3 | 4 | 1 << 63) == np.uint64(0x1 | 4 | 1 << 63))
    frames = (words[leaf] & np.uint64((1 << 52) - PAGE_SIZE)).tolist()
    assert leaf.sum() == len(frames) > 6 * 4
    assert {frames.count(frame) >= 2 for frame in set(frames)} == {True}
    # A fault is a first run of the text or a write to a protected page; the retry of the latter reaches its frame.
    codes = meant[:, 1].tolist()
    assert {hex(code) for code in codes} == {"0x14", "0x7"}
    assert codes.count(0x14) == 6
    assert len(set(places.tolist())) < len(places)
    with ran(workload, "seed") as vm:
        assert vm.stats.counters["pf_guest"] == len(meant)
        assert vm.stats.counters["mmu_unsync"] >= 0 < vm.stats.unsync_marks
        assert vm.stats.counters["mmu_shadow_zapped"] > 0


def test_exec_touches_pages_that_are_not_there() -> None:
    workload = fork_churn(vcpus=1, forks=4, execs=1, child_writes=3, depth=1)
    codes = workload.faults[0][:, 1].tolist()
    assert codes.count(0x6) == 4 * 3
    assert codes.count(0x14) == 2 * 4


def test_threads_share_their_roots_and_signal_each_other() -> None:
    workload = thread_churn(vcpus=3, cycles=6, lifetime=2)
    roots = [set(one["addr"][one["kind"] == OpKind.WRITE_CR3].tolist()) for one in workload.programs]
    assert roots[0] == roots[1] == roots[2]
    assert len(roots[0]) == 2
    for one in workload.programs:
        flushed = set(one["addr"][one["kind"] == OpKind.INVLPG].tolist())
        touched = set(one["addr"][(one["kind"] == OpKind.STORE) & (one["addr"] < DIRECT_MAP)].tolist())
        assert flushed - touched, "pages that only other vCPUs touched are flushed too"
        assert {gva >> 21 << 21 for gva in touched if gva >= STACKS} != set()
    # Each vCPU stores where each other one looks: its mailbox, and the acknowledgement.
    stored = [
        set(one["addr"][(one["kind"] == OpKind.STORE) & (one["addr"] >= DIRECT_MAP)].tolist())
        for one in workload.programs
    ]
    looked = [set(one["addr"][one["kind"] == OpKind.READ].tolist()) for one in workload.programs]
    for sender, receiver in itertools.permutations(range(3), 2):
        assert len(stored[sender] & looked[receiver]) == 2
    everywhere = [set(one["addr"][one["kind"] == OpKind.LOAD].tolist()) for one in workload.programs]
    assert any(gva >> 21 == USER_DATA >> 21 for gva in set.intersection(*everywhere)), "all read the shared pages"
    alone = thread_churn(vcpus=1, cycles=6)
    assert alone.operations < workload.operations / 3


def test_a_thread_that_exits_gives_its_page_table_to_the_next() -> None:
    workload = thread_churn(vcpus=1, cycles=8, lifetime=2, moves=0)
    (program,) = workload.programs
    upper = program[(program["kind"] == OpKind.STORE) & (program["addr"] >= DIRECT_MAP)]
    upper = upper[upper["value"] & np.uint64(0xFFF) == TABLE]
    # One page table, hung alternately into two places of the level above.
    assert len(set(upper["value"].tolist())) == 1
    assert len(set(upper["addr"].tolist())) == 2
    assert len(upper) == 4
    ran(workload, "locked").close()


@pytest.mark.parametrize("make", [partial(fork_churn, forks=6), partial(thread_churn, cycles=6), kpti_pingpong])
def test_work_comes_after_the_access_behind_each_switch(make: Callable[..., Workload]) -> None:
    plain = make(vcpus=2)
    loaded = plain.with_work(300)
    assert plain.with_work(0) is plain
    for before, after in zip(plain.programs, loaded.programs, strict=True):
        assert (after[after["kind"] != OpKind.WORK] == before).all()
        places = np.flatnonzero(after["kind"] == OpKind.WORK)
        assert (after["kind"][places - 2] == OpKind.WRITE_CR3).all()
        assert len(places) == (before["kind"] == OpKind.WRITE_CR3).sum()
        assert (after["value"][places] == 300).all()
    assert loaded.switches == plain.switches
    for one, other in ((plain, loaded), (loaded, plain)):
        for (first, rest), cut in zip(zip(*one.split(), strict=True), other.split()[0], strict=True):
            assert len(first) + len(rest) in {len(program) for program in one.programs}
            switches = [(part["kind"] == OpKind.WRITE_CR3).sum() for part in (first, cut)]
            assert switches[0] == switches[1] > 0
    if plain.name != "kpti":
        ran(loaded, "lru:3").close()
    with pytest.raises(ConfigError, match="work is -1"):
        plain.with_work(-1)


@pytest.mark.parametrize("make", [fork_churn, thread_churn])
def test_the_same_seed_makes_the_same_programs(make: Callable[..., Workload]) -> None:
    def made(seed: int) -> bytes:
        return b"".join(one.tobytes() for one in make(seed=seed).programs)

    assert made(1) == made(1)
    assert made(1) != made(2)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        *((fork_churn, one) for one in (
            {"vcpus": 0}, {"vcpus": 1025}, {"vcpus": 1.5}, {"forks": 0}, {"pages": 0}, {"pages": 513}, {"child_writes": 49},
            {"parent_writes": -1}, {"execs": 1.5}, {"execs": float("nan")}, {"execs": True}, {"depth": 0}, {"depth": 9},
            {"syscalls": -1}, {"seed": -1},
        )),
        *((thread_churn, one) for one in (
            {"vcpus": 0}, {"vcpus": "2"}, {"cycles": 0}, {"pages": 65}, {"stack": 0}, {"shared": 0}, {"moves": 2}, {"moves": "1"},
            {"lifetime": 0}, {"syscalls": 10_001}, {"seed": 1 << 64},
        )),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: Callable[..., Workload], options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} is "):
        make(**options)


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (fork_churn, {"forks": 10_000_000, "vcpus": 1024, "pages": 1, "child_writes": 1, "parent_writes": 1}),
        (thread_churn, {"cycles": 10_000_000, "vcpus": 2}),
    ],
)
def test_too_long_programs_are_refused_before_they_fill_memory(
    make: Callable[..., Workload], options: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match="operations: expected fewer"):
        make(**options)
