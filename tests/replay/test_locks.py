"""Every kind of mmu_lock replays the recorded guest: the same translations, the same acquisitions, other waits."""

from pathlib import Path

import pytest

from shadow_mmu.policy import LOCK_KINDS, Policy, with_locks
from shadow_mmu.recording import load_recording
from shadow_mmu.replay import replay_recording

RECORDING = Path(__file__).parents[2] / "recordings/linux61-4level-kpti-small.npz"


@pytest.mark.parametrize("lock", LOCK_KINDS)
def test_each_kind_of_lock_replays_the_recording_on_threads(lock: str) -> None:
    recording = load_recording(RECORDING)
    report = replay_recording(recording, with_locks([Policy.locked(), Policy.lru(3)], [lock]), mode="threads")
    assert report.ok
    for result in report.results:
        assert (result.policy.lock, result.mismatch_count, result.violations) == (lock, 0, ())
        assert result.accesses_checked == 399_490


def test_each_kind_of_lock_is_taken_as_often_in_recorded_order() -> None:
    recording = load_recording(RECORDING)
    report = replay_recording(recording, with_locks([Policy.locked(), Policy.seed()], LOCK_KINDS), lock_times=True)
    assert report.ok
    for name in ("locked", "seed"):
        results = [result for result in report.results if result.policy.name == name]
        assert [result.policy.lock for result in results] == list(LOCK_KINDS)
        assert len({tuple(result.stats.lock.acquisitions.items()) for result in results}) == 1
        assert len({tuple(result.stats.counters.items()) for result in results}) == 1
        for result in results:
            lock = result.stats.lock
            assert lock.contended == 0
            assert (lock.shared > 0) == (result.policy.lock == "rwlock")
            assert lock.longest_hold is not None
            assert lock.hold_ns is not None
            # The histogram keeps three digits.
            assert lock.longest_hold.ns == pytest.approx(lock.hold_ns.max, rel=0.002)
            assert lock.longest_hold.reason in lock.acquisitions
        as_json = report.as_dict()["results"][0]["mmu_lock"]
        assert set(as_json["longest_hold"]) == {"ns", "vcpu", "reason"}
