"""The kinds of mmu_lock, what is told of their use, and who uses one at a moment."""

import threading
import time

import pytest

from shadow_mmu import ClosedError, ConfigError, LockUser, Policy, Vm
from shadow_mmu.cpu import DEFAULT_CPU
from shadow_mmu.policy import LOCK_KINDS, LockKind
from shadow_mmu.workloads.kpti import kpti_pingpong

REASONS = {"load", "free", "sync", "fault", "pte_write", "invlpg", "zap", "host", "audit"}


@pytest.mark.parametrize("lock", LOCK_KINDS)
def test_vcpus_on_threads_agree_with_every_kind_of_lock(lock: LockKind) -> None:
    """Three vCPUs on two processors, page tables edited: switches, faults, syncs and INVLPGs on top of each other."""
    workload = kpti_pingpong(vcpus=3, processes=1, switches=3000, edits=0.2, seed=5)
    with Vm(workload.memory, vcpus=3, policy=Policy.locked(lock=lock), lock_times=True) as vm:
        vm.memory.write(0, workload.image.words)
        assert vm.run(workload.programs).faults == 0
        stats = vm.stats.lock
        for _ in range(50):
            # On a busy machine a short run can meet nobody.
            if stats.contended:
                break
            assert vm.run(workload.programs).faults == 0
            stats = vm.stats.lock
        assert vm.audit() == []
        assert (stats.shared > 0) == (lock == "rwlock")
        assert stats.contended > 0
        assert stats.wait_ns is not None
        for longest in (stats.longest_wait, stats.longest_hold):
            assert longest is not None
            assert longest.vcpu in (None, 0, 1, 2)
            assert longest.reason in REASONS
            assert longest.ns > 0
        assert stats.longest_wait is not None
        assert stats.longest_wait.ns == pytest.approx(stats.wait_ns.max, rel=0.002)
        assert vm.policy.lock == lock
        assert lock in repr(vm) or lock == "queued"


def test_an_unknown_kind_of_lock_is_refused_with_the_choices() -> None:
    with pytest.raises(ConfigError, match="no lock 'spin': expected queued, ticket, ttas, mutex or rwlock"):
        Vm("1MiB", policy="seed,lock=spin")


def test_the_core_itself_refuses_an_unknown_kind_of_lock() -> None:
    from shadow_mmu import _native

    with pytest.raises(ConfigError, match="queued, ticket, ttas, mutex, rwlock") as caught:
        _native.Vm(
            slots=[(0, 4096, False)],
            vcpus=1,
            policy="seed",
            tlb_entries=0,
            cpu=DEFAULT_CPU,
            trace=False,
            lock_times=False,
            cr3_times=False,
            lock="spin",
        )
    assert "spin" in str(caught.value)


def test_another_thread_sees_who_waits_and_who_holds() -> None:
    workload = kpti_pingpong(vcpus=3, processes=1, switches=30_000, edits=0.1, seed=5)
    seen: dict[str, set[int | None]] = {"waiting": set(), "holding": set()}
    with Vm(workload.memory, vcpus=3, policy="locked", lock_watch=True) as vm:
        assert vm.lock_users() == []
        vm.memory.write(0, workload.image.words)
        running = threading.Thread(target=vm.run, args=(workload.programs,))
        running.start()
        most = 0
        while running.is_alive():
            users = vm.lock_users()
            most = max(most, len(users))
            for user in users:
                assert user.reason in REASONS
                assert 0 <= user.ns < 600 * 10**9
                seen[user.phase].add(user.vcpu)
            time.sleep(0.0005)
        running.join()
        assert vm.lock_users() == []
        assert vm.stats.lock.wait_ns is None
        assert vm.stats.lock.longest_hold is None
    assert seen["waiting"] | seen["holding"] == {0, 1, 2}
    assert seen["waiting"]
    assert seen["holding"]
    assert most >= 2


def test_a_lock_that_is_not_watched_says_how_to_watch_it() -> None:
    with Vm("1MiB", vcpus=1) as vm, pytest.raises(ConfigError, match="expected lock_watch=True"):
        vm.lock_users()
    with Vm("1MiB", vcpus=1, lock_times=True) as vm:
        assert vm.lock_users() == []
    with pytest.raises(ClosedError):
        vm.lock_users()


def test_a_user_of_the_lock_is_a_value() -> None:
    assert LockUser(1, "waiting", "fault", 5) == LockUser(1, "waiting", "fault", 5)
