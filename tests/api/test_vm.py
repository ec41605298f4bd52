"""The public machine: memory, vCPUs, programs, statistics, shadow pages."""

import pickle
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tests.api.guest import DATA, GVA, OUTSIDE, PT_GVA, READ_ONLY, SIZE, boot

from shadow_mmu import (
    GeneralProtection,
    Memslot,
    MmioExit,
    PageFault,
    Policy,
    ProgramError,
    TripleFault,
    VcpuBusyError,
    Vm,
    ops,
)
from shadow_mmu.types import OutcomeCode, TraceKind


@pytest.fixture
def vm() -> Iterator[Vm]:
    with Vm(SIZE, vcpus=2, trace=True) as machine:
        yield machine


def test_accesses_reach_what_the_tables_say(vm: Vm) -> None:
    boot(vm)
    vcpu = vm.vcpus[0]
    assert vcpu.access(GVA + 0x123) == DATA + 0x123
    assert vcpu.access(GVA, "write", user=True) == DATA
    assert vcpu.access(READ_ONLY + 8, "fetch") == DATA + 0x1008
    assert vcpu.access(OUTSIDE + 8) == MmioExit(0x3000_0008)


def test_loads_and_stores_go_to_guest_memory(vm: Vm) -> None:
    boot(vm)
    vcpu = vm.vcpus[0]
    assert vcpu.store(GVA + 4, 0x11223344, 4) is None
    assert vm.memory.read(DATA, 8) == bytes.fromhex("0000000044332211")
    vm.memory.write(DATA + 8, b"\xff" * 8)
    assert (vcpu.load(GVA + 8), vcpu.load(GVA + 4, 2), vcpu.load(GVA + 5, 1)) == (2**64 - 1, 0x3344, 0x33)
    assert vcpu.load(OUTSIDE) == vcpu.store(OUTSIDE, 1) == MmioExit(0x3000_0000)


def test_a_store_to_a_page_table_takes_effect_at_invlpg(vm: Vm) -> None:
    boot(vm)
    vcpu = vm.vcpus[0]
    assert vcpu.access(GVA) == DATA
    vcpu.store(PT_GVA, (DATA + 0x5000) | 0x67)
    assert vcpu.access(GVA) == DATA  # legally stale
    vcpu.invlpg(GVA)
    assert vcpu.access(GVA) == DATA + 0x5000


def test_guest_faults_are_exceptions_with_their_words(vm: Vm) -> None:
    boot(vm)
    vcpu = vm.vcpus[0]
    with pytest.raises(PageFault) as caught:
        vcpu.access(READ_ONLY + 5, "write", user=True)
    assert (caught.value.address, caught.value.error_code) == (READ_ONLY + 5, 7)
    assert str(caught.value) == "#PF at 0x401005, error code 0x7 (PWU)"
    with pytest.raises(GeneralProtection) as general:
        vcpu.access(1 << 47)
    assert general.value.error_code == 0
    with pytest.raises(GeneralProtection):
        vcpu.write_cr3(1 << 46)
    assert vcpu.cr3 != 1 << 46


def test_E015_a_root_outside_memory_shuts_the_vcpu_down_under_the_old_policies() -> None:  # noqa: N802  the id
    with Vm(SIZE, vcpus=1, policy="seed") as vm:
        boot(vm)
        vm.vcpus[0].write_cr3(1 << 30)
        for _ in range(2):
            with pytest.raises(TripleFault):
                vm.vcpus[0].access(GVA)


def test_registers_read_back_and_roots_show(vm: Vm) -> None:
    space = boot(vm)
    vcpu = vm.vcpus[1]
    assert (vcpu.index, vcpu.cr0, vcpu.cr3, vcpu.cr4, vcpu.efer) == (1, 0x80050033, space.root, 0x20, 0xD00)
    vcpu.access(GVA)
    assert vcpu.roots()[0][0] == space.root
    assert len(vcpu.roots()) == 1 + 3


def test_memory_is_read_and_written_as_bytes_and_arrays(vm: Vm) -> None:
    words = np.arange(1024, dtype="<u8")
    vm.memory.write(0x5000, words)
    assert (vm.memory.read_array(0x5000, 1024) == words).all()
    assert vm.memory.read(0x5008, 3) == b"\x01\0\0"
    vm.memory.write(0x5001, bytearray(b"xyz"))
    assert vm.memory.read(0x5000, 5) == b"\0xyz\0"
    vm.memory.write(0x6000, words.reshape(32, 32)[0:4].view(">u4"))
    assert vm.memory.read_array(0x6008, 1).tolist() == [1]
    vm.memory.write(0x6000, words.data[3:5])
    assert vm.memory.read_array(0x6000, 2).tolist() == [3, 4]
    vm.memory.write(0x6000, b"")
    assert vm.memory.read(0x6000, 0) == b""
    assert vm.memory.read_array(0x7000).shape == (512,)


def test_a_host_write_drops_the_shadow_of_what_it_changes(vm: Vm) -> None:
    space = boot(vm)
    vcpu = vm.vcpus[0]
    assert vcpu.access(GVA) == DATA
    before = vm.stats.lock.acquisitions["host"]
    space.write_entry(space.slot(GVA), (DATA + 0x3000) | 0x67)
    assert vm.stats.lock.acquisitions["host"] == before + 1
    assert vcpu.access(GVA) == DATA + 0x3000


def test_programs_run_on_their_vcpus(vm: Vm) -> None:
    space = boot(vm)
    programs = [
        ops.program(
            [ops.write_cr3(space.root), ops.access(GVA + vcpu), ops.access(READ_ONLY, "write"), ops.access(OUTSIDE)]
        )
        for vcpu in range(2)
    ]
    report = vm.run(programs, outcomes=True)
    assert report.ops_done == (4, 4)
    assert report.faults == 4
    assert report.outcomes is not None
    for vcpu, outcomes in enumerate(report.outcomes):
        assert outcomes["code"].tolist() == [OutcomeCode.OK, OutcomeCode.OK, OutcomeCode.PAGE_FAULT, OutcomeCode.MMIO]
        assert outcomes["value"].tolist() == [0, DATA + vcpu, READ_ONLY, 0x3000_0000]
        assert outcomes["error"].tolist() == [0, 0, 3, 0]
    assert vm.run(programs).outcomes is None
    assert "8 operations" in repr(report)


def test_a_program_may_write_pages_and_an_empty_one_does_nothing(vm: Vm) -> None:
    pages = np.full((2, 512), 7, "<u8")
    report = vm.run([np.zeros(0, ops.OP), ops.program([ops.host_page(0x9000, 1)])], pages=pages)
    assert report.ops_done == (0, 1)
    assert (vm.memory.read_array(0x9000) == 7).all()


def test_host_misuse_in_a_program_names_its_place_and_keeps_what_was_done(vm: Vm) -> None:
    with pytest.raises(ProgramError, match=r"vCPU 1.*(operation|op) 1"):
        vm.run([np.zeros(0, ops.OP), ops.program([ops.host_store(0x9000, 5), ops.host_store(1 << 40, 1)])])
    assert vm.memory.read_array(0x9000, 1).tolist() == [5]


def test_progress_is_told_and_may_stop_a_run(vm: Vm) -> None:
    class Enough(Exception):  # noqa: N818  a test's own
        pass

    told = []

    def stop(done: int) -> None:
        told.append(done)
        raise Enough

    long = np.repeat(ops.program([ops.work(1_000_000)]), 5000)
    with pytest.raises(Enough):
        vm.run([long], progress=stop)
    assert len(told) == 1
    assert vm.run([ops.program([ops.sync_tlb()])]).ops_done == (1,)


def test_statistics_are_values(vm: Vm) -> None:
    boot(vm)
    vm.vcpus[0].access(GVA)
    stats = vm.stats
    assert stats.counters["pf_fixed"] == 1
    assert stats.per_vcpu[0].counters["pf_fixed"] == 1
    assert stats.per_vcpu[1].counters["pf_fixed"] == 0
    assert stats.lock.total == sum(stats.lock.acquisitions.values()) > 0
    assert stats.lock.hold_ns is None
    assert stats.shadow_pages_live == len(vm.shadow_pages()) == 4
    with pytest.raises(TypeError):
        stats.counters["pf_fixed"] = 2  # type: ignore[index]
    vm.vcpus[0].access(READ_ONLY)
    assert stats.counters["pf_fixed"] == 1  # a copy


def test_lock_times_are_measured_when_asked_for() -> None:
    with Vm(SIZE, vcpus=1, lock_times=True) as vm:
        boot(vm)
        vm.vcpus[0].access(GVA)
        assert vm.stats.lock.hold_ns is not None
        assert 0 < vm.stats.lock.hold_ns.p50 <= vm.stats.lock.hold_ns.max
        assert vm.stats.cr3_write_ns is not None


def test_shadow_pages_are_really_there(vm: Vm) -> None:
    space = boot(vm)
    vm.vcpus[0].access(GVA)
    pages = vm.shadow_pages()
    assert [page.level for page in pages] == [4, 3, 2, 1]
    assert pages[0].gfn == space.root >> 12
    assert (pages[0].root_count, pages[0].parents) == (1, ())
    for parent, child in pairwise(pages):
        ((index, spte),) = parent.sptes.items()
        assert child.parents == ((parent.id, index),)
        assert spte & ~0xFFF & ((1 << 52) - 1) == child.hpa
    (leaf,) = pages[3].sptes.values()
    # The pfn is not the gfn, so that a mixed-up one shows.
    assert leaf >> 12 & ((1 << 40) - 1) == (DATA >> 12) + (1 << 34)
    assert "level=1" in repr(pages[3])
    assert vm.audit() == []


def test_the_trace_is_taken_once(vm: Vm) -> None:
    boot(vm)
    vm.vcpus[0].access(GVA)
    kinds = vm.trace()["kind"].tolist()
    assert kinds == [TraceKind.GET_PAGE] * 4 + [TraceKind.SET_SPTE]
    assert len(vm.trace()) == 0


def test_memslots_can_be_many_and_more(vm: Vm) -> None:
    with Vm([Memslot(1 << 20, 1 << 20), Memslot(0, 4096)], vcpus=1) as many:
        assert [slot.gpa for slot in many.memory.slots] == [0, 1 << 20]
        assert many.memory.size == (1 << 20) + 4096
        assert many.add_memslot(1 << 30, 8192) == Memslot(1 << 30, 8192)
        many.memory.write((1 << 30) + 8190, b"ab")
        assert many.memory.read((1 << 30) + 8190, 2) == b"ab"
    boot(vm)
    assert vm.vcpus[0].access(OUTSIDE) == MmioExit(0x3000_0000)
    vm.add_memslot(0x3000_0000, 4096)
    assert vm.vcpus[0].access(OUTSIDE) == 0x3000_0000


def test_e153_a_read_only_memslot_is_the_hosts_to_write_and_the_guests_to_read(vm: Vm) -> None:
    boot(vm)
    rom = vm.add_memslot(0x3000_0000, 4096, read_only=True)
    assert rom == Memslot(0x3000_0000, 4096, read_only=True) != Memslot(0x3000_0000, 4096)
    assert repr(vm.memory) == "<Memory 0x0+0x400000, 0x30000000+0x1000 read-only>"
    vm.memory.write(rom.gpa, b"boot")
    assert vm.vcpus[0].load(OUTSIDE, 4) == int.from_bytes(b"boot", "little")
    assert vm.vcpus[0].store(OUTSIDE + 8, 7) == MmioExit(0x3000_0008)
    assert vm.vcpus[0].access(OUTSIDE, "write") == MmioExit(0x3000_0000)
    assert vm.memory.read(rom.gpa, 16) == b"boot" + bytes(12)
    assert vm.stats.counters["mmio_exits"] == 2
    assert [vm.memory.is_read_only(gpa) for gpa in (0, rom.gpa, rom.gpa + 4095, rom.gpa + 4096)] == [
        False,
        True,
        True,
        False,
    ]
    with Vm([Memslot(0, SIZE), rom], vcpus=1) as made:
        assert pickle.loads(pickle.dumps(made.config)).memory == (Memslot(0, SIZE), rom)  # noqa: S301  our own
        boot(made)
        assert made.vcpus[0].store(OUTSIDE, 7) == MmioExit(0x3000_0000)


@pytest.mark.parametrize(
    ("memory", "size"), [("64KiB", 1 << 16), ("1 M", 1 << 20), ("8192", 8192), (12288, 12288), ("4096B", 4096)]
)
def test_sizes_have_units(memory: str | int, size: int) -> None:
    with Vm(memory, vcpus=1) as vm:
        assert vm.memory.size == size


def test_reprs_say_what_it_is(vm: Vm) -> None:
    assert repr(vm) == "<Vm 4,096 KiB, 2 vCPUs, policy lru:3>"
    assert repr(vm.memory) == "<Memory 0x0+0x400000>"
    assert "0" in repr(vm.vcpus[0])
    assert repr(MmioExit(16)) == "MmioExit(gpa=0x10)"
    assert repr(Memslot(4096, 8192)) == "Memslot(gpa=0x1000, bytes=0x2000)"
    assert repr(Memslot(4096, 8192, read_only=True)) == "Memslot(gpa=0x1000, bytes=0x2000, read_only=True)"
    assert vm.policy == Policy.lru(3)
    assert not vm.closed
    vm.close()
    assert repr(vm) == "<Vm closed, 2 vCPUs, policy lru:3>"
    assert vm.closed


def test_one_vcpu_cannot_be_driven_from_two_threads(vm: Vm) -> None:
    boot(vm)
    started = threading.Event()
    long = np.repeat(ops.program([ops.work(1_000_000)]), 300)
    refused = []

    def drive() -> None:
        started.wait()
        for _ in range(100):
            try:
                vm.vcpus[0].access(GVA)
            except VcpuBusyError as error:
                refused.append(error)

    thread = threading.Thread(target=drive)
    thread.start()
    vm.run([long], progress=lambda _done: started.set())
    thread.join()
    assert refused
    assert vm.vcpus[0].access(GVA) == DATA


def test_typing_is_announced() -> None:
    import shadow_mmu

    package = Path(shadow_mmu.__file__).parent
    assert (package / "py.typed").exists()
    assert (package / "_native.pyi").exists()
