"""Core and model do the same with every kind of mmu_lock, and share it for the same."""

from functools import partial
from typing import Any

import pytest

from shadow_mmu.differential import ModelSubject, NativeSubject, compare
from shadow_mmu.policy import LOCK_KINDS, Policy
from shadow_mmu.workloads.random import random_stream
from shadow_mmu.workloads.world import MachineConfig

OPERATIONS = 1200


def _given(subject: Any, _config: MachineConfig) -> Any:  # noqa: ANN401  one of two kinds of subject
    return subject


def _compared(policy: str, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run a stream on both, which must agree in all state; return what each says of the lock."""
    stream = random_stream(seed, OPERATIONS, policy=policy, vcpus=3, paging="4-level")
    core, model = NativeSubject(stream.config), ModelSubject(stream.config)
    found = compare(stream, partial(_given, core), partial(_given, model), every=40, audit_every=200)
    assert found is None, str(found)
    counted = [subject.stats() for subject in (core.vm, model.machine)]
    assert counted[0]["counters"] == counted[1]["counters"]
    return counted[0]["lock"], counted[1]["lock"]


@pytest.mark.parametrize("lock", LOCK_KINDS)
@pytest.mark.parametrize("name", ["locked", "seed", "lru:3"])
def test_core_and_model_take_each_kind_of_lock_for_the_same(name: str, lock: str) -> None:
    core, model = _compared(f"{name},lock={lock}", seed=4711)
    assert core == model
    assert sum(core["acquisitions"].values()) > OPERATIONS // 4
    assert (core["shared"] > core["acquisitions"]["audit"]) == (lock == "rwlock")
    queued, _ = _compared(name, seed=4711)
    assert core["acquisitions"] == queued["acquisitions"], "the kind changes who waits, not what is taken"


def test_what_is_shared_is_what_has_nothing_to_do() -> None:
    """``locked`` syncs a clean root at each switch; everyone has INVLPGs on clean roots."""
    for policy in (Policy.locked(lock="rwlock"), Policy.lru(3, lock="rwlock")):
        core, _ = _compared(str(policy), seed=99)
        looks = sum(core["acquisitions"][reason] for reason in ("sync", "invlpg", "audit"))
        assert core["acquisitions"]["audit"] < core["shared"] < looks
