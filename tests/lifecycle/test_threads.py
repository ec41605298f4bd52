"""Python threads beside a run, and Python threads that drive the vCPUs of one machine (with the GIL and without)."""

import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.api.guest import DATA, GVA, PT_GVA, SIZE, boot
from tests.lifecycle.work import BUSY, LONG, ROUND, machine, usable

from shadow_mmu import Vcpu, VcpuBusyError, Vm, ops

VCPUS = 4
POLICIES = ["locked", "seed", "lru:3"]


def all_at_once(bodies: Iterable[Callable[[], object]]) -> None:
    """Run each body on a thread of its own, from one barrier on; what one raises is raised here."""
    todo = list(bodies)
    barrier = threading.Barrier(len(todo))

    def start(body: Callable[[], object]) -> object:
        barrier.wait()
        return body()

    with ThreadPoolExecutor(len(todo)) as pool:
        for future in [pool.submit(start, body) for body in todo]:
            future.result(timeout=300)


def test_the_interpreter_says_whether_it_has_a_gil() -> None:
    """So that a log tells which kind of Python these tests ran on; the module must not have brought the GIL back."""
    free = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
    enabled = getattr(sys, "_is_gil_enabled", lambda: True)()
    print(f"Python {sys.version.split()[0]}, {'free-threaded' if free else 'with a GIL'}")
    assert enabled is not free


def test_r11_another_python_thread_advances_while_a_run_works() -> None:
    steps = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal steps
        while not stop.is_set():
            steps += 1
            time.sleep(0)

    def progress(_done: int) -> None:
        if steps - before > 1_000:
            raise TimeoutError

    with machine() as vm:
        thread = threading.Thread(target=count)
        thread.start()
        before = steps
        with pytest.raises(TimeoutError):
            vm.run([LONG, LONG], progress=progress)
        during = steps - before
        stop.set()
        thread.join()
        print(f"another Python thread made {during:,} steps during a run")
        assert usable(vm)


def test_r12_the_threads_of_a_run_are_gone_afterwards() -> None:
    def native_threads() -> int:
        with open("/proc/self/status") as status:  # noqa: PTH123  one line of it
            return next(int(line.split()[1]) for line in status if line.startswith("Threads:"))

    with machine(vcpus=16) as vm:
        vm.run([ROUND] * 16)
        before = native_threads()
        for _ in range(20):
            vm.run([ROUND] * 16)
        after = native_threads()
    assert after == before


@pytest.mark.parametrize("policy", POLICIES)
def test_separate_vcpus_from_separate_threads(policy: str) -> None:
    """Each thread writes and reads a word of its own through its own vCPU, and flushes; nobody sees another's value."""
    rounds = 300

    def drive(vcpu: Vcpu) -> None:
        own = GVA + 8 * vcpu.index
        root = vcpu.cr3
        for number in range(rounds):
            value = vcpu.index << 32 | number
            vcpu.store(own, value)
            vcpu.invlpg(GVA)
            assert vcpu.load(own) == value
            vcpu.write_cr3(root)
            assert vcpu.access(own, "write") == DATA + 8 * vcpu.index

    with machine(vcpus=VCPUS, policy=policy) as vm:
        all_at_once([lambda vcpu=vcpu: drive(vcpu) for vcpu in vm.vcpus])  # type: ignore[misc]
        assert vm.audit() == []
        for vcpu in vm.vcpus:
            word = int.from_bytes(vm.memory.read(DATA + 8 * vcpu.index, 8), "little")
            assert word == vcpu.index << 32 | rounds - 1
        assert [one.cr3.writes for one in vm.stats.per_vcpu] == [rounds] * VCPUS
        assert usable(vm)


@pytest.mark.parametrize("policy", POLICIES)
def test_threads_that_write_one_shared_table_while_others_walk_it(policy: str) -> None:
    """Half of the vCPUs move the page by stores to the page table, the others see one place or the other, and flush."""
    places = [DATA | 7, DATA + 0x10_0000 | 7]
    window = PT_GVA + 8 * (GVA >> 12 & 511)

    def move(vcpu: Vcpu) -> None:
        for number in range(200):
            vcpu.store(window, places[number % 2])
            vcpu.invlpg(GVA)

    def look(vcpu: Vcpu) -> None:
        for _ in range(200):
            vcpu.invlpg(GVA)
            assert vcpu.access(GVA) in (DATA, DATA + 0x10_0000)

    with machine(vcpus=VCPUS, policy=policy) as vm:
        vm.memory.write(0x10_0000 - 8, bytes(8))
        all_at_once(
            (lambda vcpu=vcpu: (move, look)[vcpu.index % 2](vcpu))  # type: ignore[misc]
            for vcpu in vm.vcpus
        )
        assert vm.audit() == []
        for vcpu in vm.vcpus:
            vcpu.invlpg(GVA)
            assert vcpu.access(GVA) == DATA + 0x10_0000


def test_a_run_and_host_accesses_and_single_calls_at_once() -> None:
    with machine(vcpus=VCPUS) as vm:

        def host() -> None:
            for number in range(300):
                vm.memory.write(DATA + 0x1000, number.to_bytes(8, "little"))
                assert vm.memory.read(DATA + 0x1000, 8) == number.to_bytes(8, "little")

        def single() -> None:
            for _ in range(300):
                assert vm.vcpus[3].access(GVA) == DATA
                assert vm.vcpus[3].roots()[0][0] == vm.vcpus[3].cr3

        def runs() -> None:
            for _ in range(10):
                assert vm.run([BUSY[:4000]] * 3).ops_done == (4000,) * 3

        all_at_once([host, single, runs])
        assert usable(vm)


def test_one_vcpu_from_two_threads_is_refused_to_one_of_them_and_does_no_harm() -> None:
    """Whoever comes second gets an error at once; the operations that were let through all happened, one by one."""
    done: list[int] = []
    lock = threading.Lock()

    with machine(vcpus=1) as vm:

        def drive() -> None:
            through = 0
            for _ in range(2_000):
                try:
                    vm.vcpus[0].invlpg(GVA)
                    through += 1
                except VcpuBusyError as error:
                    assert "vCPU 0 is being driven by another thread" in str(error)  # noqa: PT017  it may not come
            with lock:
                done.append(through)

        all_at_once([drive] * 4)
        assert vm.stats.counters["invlpg"] == sum(done)
        assert usable(vm)


def test_two_runs_on_one_machine_are_refused_to_one_of_them() -> None:
    with machine() as vm:
        started = threading.Event()
        refused: list[VcpuBusyError] = []

        def second() -> None:
            started.wait()
            try:
                vm.run([ROUND])
            except VcpuBusyError as error:
                refused.append(error)

        thread = threading.Thread(target=second)
        thread.start()

        def progress(_done: int) -> None:
            started.set()
            if refused:
                raise TimeoutError

        with pytest.raises(TimeoutError):
            vm.run([LONG, LONG], progress=progress)
        thread.join()
        assert usable(vm)


def test_machines_made_and_closed_by_many_threads_at_once() -> None:
    def live() -> None:
        for _ in range(20):
            with Vm(SIZE, vcpus=2) as vm:
                boot(vm)
                assert vm.run([ROUND] * 2).ops_done == (4, 4)

    all_at_once([live] * 4)


def test_close_waits_for_nobody_and_breaks_nothing_while_others_use_the_machine() -> None:
    from shadow_mmu import ClosedError

    vm = machine()
    seen: set[type[Exception]] = set()

    def use(vcpu: Vcpu) -> None:
        try:
            while True:
                vcpu.load(GVA)
        except ClosedError as error:
            seen.add(type(error))

    def close() -> None:
        time.sleep(0.05)
        while not vm.closed:
            try:
                vm.close()
            except VcpuBusyError:
                time.sleep(0)

    all_at_once([*(lambda vcpu=vcpu: use(vcpu) for vcpu in vm.vcpus), close])
    assert seen == {ClosedError}


def test_memslots_added_by_many_threads_are_all_there() -> None:
    with machine(vcpus=1) as vm:

        def add(first: int) -> None:
            for number in range(10):
                vm.add_memslot((first * 10 + number + 1) << 30, 4096)

        all_at_once([lambda first=first: add(first) for first in range(4)])  # type: ignore[misc]
        slots = [slot.gpa for slot in vm.memory.slots]
        assert slots == [0, *(number << 30 for number in range(1, 41))]
        assert all(vm.memory.read(gpa, 8) == bytes(8) for gpa in slots[1:])


def test_progress_and_signals_of_several_runs_do_not_mix() -> None:
    heard: dict[int, list[int]] = {0: [], 1: []}

    def drive(index: int) -> None:
        with machine() as vm:
            program = ops.program([ops.work(2_000_000)] * 200)
            report = vm.run([program] * 2, progress=heard[index].append)
            assert report.ops_done == (200, 200)

    all_at_once([lambda index=index: drive(index) for index in (0, 1)])  # type: ignore[misc]
    for calls in heard.values():
        assert calls
        assert calls == sorted(calls)
        assert calls[-1] <= 400
