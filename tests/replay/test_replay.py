"""Replays of the shipped recording and of small ones, on the core and on the model."""

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.replay import small

from shadow_mmu import ConfigError, Policy, Recording, load_recording, replay_recording
from shadow_mmu.differential import ModelSubject, NativeSubject
from shadow_mmu.history import split_legal
from shadow_mmu.ops import Op
from shadow_mmu.recording_program import compile_recording
from shadow_mmu.report import Implementation, Mode, ReplayResult
from shadow_mmu.workloads.world import MachineConfig

BOTH: list[Implementation] = ["native", "python"]
JSON_KEYS = {
    "policy", "mode", "model", "accesses_checked", "mismatches", "stale_legal", "guest_faults", "violations", "cr3_writes",
    "cr3_same", "cr3_same_locked", "cr3_lockless", "cr3_locked", "mmu_lock", "counters", "cr3_write_ns", "shadow_bytes",
    "max_parallel", "seconds",
}  # fmt: skip
REASONS = ["load", "free", "sync", "fault", "pte_write", "invlpg", "zap", "host", "audit"]


def altered(recording: Recording, name: str, row: int, value: int) -> Recording:
    """Return the recording with one number changed."""
    array = getattr(recording, name).copy()
    array[row] = value
    return dataclasses.replace(recording, **{name: array})


def one(recording: Recording, policy: str = "lru:3", **options: Any) -> ReplayResult:  # noqa: ANN401  replay's own
    return replay_recording(recording, [policy], **options).results[0]


@pytest.fixture
def tiny(tmp_path: Path) -> Recording:
    return load_recording(small.write(tmp_path / "tiny.npz", small.arrays()))


@pytest.mark.parametrize("mode", ["ordered", "threads"])
@pytest.mark.parametrize("policy", ["locked", "seed", "lru:1", "lru:3", "lru:8"])
def test_the_shipped_recording_comes_out_as_recorded(kpti: Recording, policy: str, mode: Mode) -> None:
    result = one(kpti, policy, mode=mode, audit_every=1000)
    assert result.ok
    assert (result.accesses_checked, result.stores_checked) == (399_490, 57_825)
    assert (result.mismatch_count, result.guest_faults, result.violations) == (0, 0, ())
    assert result.audits == 472
    assert result.events_done == kpti.events
    cr3 = result.stats.cr3
    assert (cr3.writes, cr3.same) == (12_212, 20)
    assert cr3.writes == cr3.same + cr3.lockless + cr3.locked
    assert cr3.locked == cr3.locked_miss + cr3.locked_unsync
    if mode == "ordered":
        assert (result.max_parallel, result.stale_legal) == (1, ())
    else:
        assert result.max_parallel >= 2


def test_threads_take_at_most_ten_seconds(kpti: Recording) -> None:
    # The best of three: a machine that does other things too must not fail it.
    assert min(one(kpti, "locked", mode="threads").seconds for _ in range(3)) <= 10


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_the_core_replays_the_shipped_recording_in_half_a_second(kpti: Recording, policy: str) -> None:
    assert min(one(kpti, policy).seconds for _ in range(3)) <= 0.5


def test_the_model_replays_the_shipped_recording_in_a_minute(kpti: Recording) -> None:
    result = one(kpti, model="python")
    assert result.ok
    assert (result.accesses_checked, result.seconds <= 60) == (399_490, True)


@pytest.mark.parametrize(
    ("policy", "lockless", "acquisitions"), [("locked", 0.0, 40_495), ("seed", 89.8, 5_654), ("lru:3", 92.5, None)]
)
def test_the_share_of_lock_free_switches_is_that_of_the_prototype(
    kpti: Recording, policy: str, lockless: float, acquisitions: int | None
) -> None:
    stats = one(kpti, policy).stats
    share = 100 * stats.cr3.lockless / (stats.cr3.writes - stats.cr3.same)
    assert abs(share - lockless) < 1
    # The prototype did not count the hypervisor's own writes.
    guest = stats.lock.total - stats.lock.acquisitions["host"] - stats.lock.acquisitions["audit"]
    assert acquisitions is None or abs(guest - acquisitions) < acquisitions / 100


def test_invlpg_takes_the_lock_once_for_each_root(kpti: Recording) -> None:
    counts = [one(kpti, policy).stats.lock.acquisitions["invlpg"] for policy in ("seed", "lru:3", "lru:8")]
    assert counts[0] == 618 < counts[1] < counts[2]


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3"])
def test_core_and_model_count_the_same(kpti: Recording, policy: str) -> None:
    native, python = one(kpti, policy).stats, one(kpti, policy, model="python").stats
    assert dict(native.counters) == dict(python.counters)
    assert dict(native.lock.acquisitions) == dict(python.lock.acquisitions)
    assert native.cr3 == python.cr3
    assert [dict(vcpu.counters) for vcpu in native.per_vcpu] == [dict(vcpu.counters) for vcpu in python.per_vcpu]
    for name in ("tlb_full_flushes", "shadow_pages_live", "shadow_pages_peak", "sync_pages", "sync_pages_unchanged"):
        assert getattr(native, name) == getattr(python, name)


def test_core_and_model_see_the_same_events_of_the_shipped_recording(kpti: Recording) -> None:
    program = compile_recording(kpti)
    config = MachineConfig("lru:3", vcpus=2, tlb_entries=1536, slots=((0, kpti.ram_bytes, False),))
    native, python = NativeSubject(config), ModelSubject(config)
    events = 0
    for start in range(0, len(program.ops), 50_000):
        for row in program.ops[start : start + 50_000].tolist():
            op = Op(*row)
            assert native.execute(op, program.pages) == python.execute(op, program.pages)
        left, right = native.take_trace(), python.take_trace()
        assert left == right
        events += len(left)
        assert native.state_words() == python.state_words()
    assert events > 0


@pytest.mark.parametrize("model", BOTH)
def test_one_altered_gpa_is_a_mismatch_with_its_event_index(kpti: Recording, model: Implementation) -> None:
    row = 200_000 + int(np.flatnonzero(kpti.kind[200_000:] == small.READ)[0])
    expected = int(kpti.value[row]) ^ 0x1000
    result = one(altered(kpti, "value", row, expected), model=model)
    assert not result.ok
    assert result.mismatch_count == 1
    (found,) = result.mismatches
    assert (found.event, found.expected, found.reached) == (row, expected, expected ^ 0x1000)
    assert f"event {row}" in str(found)


@pytest.mark.parametrize("model", BOTH)
def test_an_altered_gpa_of_a_store_or_of_the_write_before_it_is_a_mismatch(
    tiny: Recording, model: Implementation
) -> None:
    # The store is recorded elsewhere: its own check fails, and the write before it is no part of it any more.
    elsewhere = one(altered(tiny, "addr", 12, 0x21000), model=model)
    assert elsewhere.mismatches[0].event == 12
    write = one(altered(tiny, "value", 11, 0x21000), model=model)
    assert [found.event for found in write.mismatches] == [11]


@pytest.mark.parametrize("model", BOTH)
def test_a_fault_that_the_guest_did_not_have_is_a_mismatch(tiny: Recording, model: Implementation) -> None:
    result = one(altered(tiny, "addr", 9, small.GVA + 0x3000), model=model)
    assert (result.guest_faults, result.mismatch_count) == (1, 1)
    assert "PAGE_FAULT" in str(result.mismatches[0])
    assert not result.ok


@pytest.mark.parametrize("model", BOTH)
def test_a_stale_translation_that_hardware_may_give_is_listed_and_no_mismatch(
    tiny: Recording, model: Implementation
) -> None:
    """vCPU 0 reads the page again after the store and before its INVLPG; recorded is the new frame."""
    rows = [*small.ROWS[:13], (small.READ, 0, 1, 8, small.GVA + 0x18, 0x22018, 0), *small.ROWS[13:]]
    stale = load_recording(small.write(tiny.path.parent / "stale.npz", small.arrays(rows)))
    result = one(stale, model=model)
    assert result.ok
    assert [(found.event, found.reached) for found in result.stale_legal] == [(13, small.DATA + 0x18)]
    # After the INVLPG the old frame would be wrong: recorded as reached, the new one differs illegally.
    wrong = one(altered(tiny, "value", 14, small.DATA + 0x18), model=model)
    assert [found.event for found in wrong.mismatches] == [14]
    assert wrong.stale_legal == ()


@pytest.mark.parametrize("model", BOTH)
def test_without_check_nothing_is_compared(tiny: Recording, model: Implementation) -> None:
    result = one(altered(tiny, "value", 9, 0x21018), model=model, check=False)
    assert result.ok
    assert (result.accesses_checked, result.stores_checked) == (0, 0)


@pytest.mark.parametrize("model", BOTH)
def test_small_recordings_count_each_access_once(tiny: Recording, model: Implementation) -> None:
    result = one(tiny, model=model, audit_every=6)
    assert result.ok
    # Rows 9, 10, 11 (with 12), 14, 16; one store through the guest's mapping; audits before rows 6, 12, 18 and at the end.
    assert (result.accesses_checked, result.stores_checked, result.audits) == (5, 1, 4)
    assert result.stats.lock.acquisitions["audit"] == 4
    # The one store was trapped or let through once, for both rows.
    assert result.stats.counters["pf_taken"] <= 5


@pytest.mark.timeout(60)
def test_audits_of_different_vcpus_right_after_each_other_do_not_wait_for_each_other(tiny: Recording) -> None:
    """A vCPU that waits to audit must let another, whose audit comes first, look at it."""
    for _ in range(300):
        result = one(tiny, mode="threads", audit_every=1)
        assert (result.ok, result.audits) == (True, 18)


def test_the_report_has_the_keys_that_stay(tiny: Recording) -> None:
    report = replay_recording(tiny, ["locked", "seed"], lock_times=True).as_dict()
    assert (report["recording"], report["events"]) == ("tiny", 19)
    assert [result["policy"] for result in report["results"]] == ["locked", "seed"]
    for result in report["results"]:
        assert result.keys() >= JSON_KEYS
        assert list(result["mmu_lock"]["acquisitions"]) == REASONS
        assert set(result["mmu_lock"]["hold_ns"]) == {"p50", "p99", "max", "total"}
        assert set(result["cr3_write_ns"]) >= {"p50", "p99", "max"}
        for counter in (
            "pf_fixed",
            "mmu_unsync",
            "mmu_cache_miss",
            "mmu_pte_write",
            "mmu_shadow_zapped",
            "remote_tlb_flush",
        ):
            assert isinstance(result["counters"][counter], int)
    assert replay_recording(tiny, ["seed"]).as_dict()["results"][0]["mmu_lock"]["hold_ns"] is None


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mode": "random"}, "mode 'random'"),
        ({"model": "rust"}, "model 'rust'"),
        ({"model": "python", "mode": "threads"}, "has no threads"),
        ({"audit_every": 0}, "audit_every is 0"),
        ({"audit_every": -1}, "audit_every is -1"),
        ({"audit_every": 1.5}, "audit_every is 1.5"),
        ({"audit_every": True}, "audit_every is True"),
    ],
)
def test_options_that_make_no_sense_are_refused(tiny: Recording, options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        one(tiny, **options)


@pytest.mark.parametrize("policies", [[], ["seed", "seed"], ["lru:17"], [Policy.seed(), "seed"]])
def test_policies_that_make_no_sense_are_refused(tiny: Recording, policies: list[str | Policy]) -> None:
    with pytest.raises(ConfigError, match="policy"):
        replay_recording(tiny, policies)


# Slow enough that a signal finds it at work: the core is so by an audit every few events.
SLOW: list[tuple[Implementation, Mode, int | None]] = [("native", "threads", 20), ("python", "ordered", None)]


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """Undo what a shell does to what it starts in the background: ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeds_ctrl_c")
@pytest.mark.parametrize(("model", "mode", "audit_every"), SLOW)
def test_ctrl_c_ends_a_replay_with_what_was_done(
    kpti: Recording, model: Implementation, mode: Mode, audit_every: int | None
) -> None:
    pressed = threading.Event()

    def press(done: int) -> None:
        if done and not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.01)

    before = signal.getsignal(signal.SIGINT)
    report = replay_recording(
        kpti, [f"lru:{n}" for n in range(17)], model=model, mode=mode, audit_every=audit_every, progress=press
    )
    assert report.interrupted
    assert 0 < len(report.results) < 17
    last = report.results[-1]
    assert last.interrupted
    assert 0 < last.events_done < kpti.events
    assert report.ok
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("at", [0, 2])
def test_ctrl_c_between_two_replays_keeps_what_is_done(
    kpti: Recording, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    judge, calls = split_legal, []

    def press(*args: Any) -> tuple[list[int], list[int]]:  # noqa: ANN401  passed on
        calls.append(args)
        if len(calls) > at:
            raise KeyboardInterrupt
        return judge(*args)

    monkeypatch.setattr("shadow_mmu.replay.split_legal", press)
    report = replay_recording(kpti, ["locked", "seed", "lru:1", "lru:2"])
    assert (report.interrupted, len(report.results)) == (True, at)


@pytest.mark.parametrize(("model", "mode", "audit_every"), SLOW)
def test_what_the_progress_callback_raises_comes_out(
    kpti: Recording, model: Implementation, mode: Mode, audit_every: int | None
) -> None:
    class Enough(Exception):  # noqa: N818  a test's own
        pass

    def stop(_done: int) -> None:
        raise Enough

    with pytest.raises(Enough):
        replay_recording(
            kpti, [f"lru:{n}" for n in range(17)], model=model, mode=mode, audit_every=audit_every, progress=stop
        )
