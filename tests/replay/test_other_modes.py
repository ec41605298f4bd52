"""Guests without long mode, replayed: 32-bit paging with PSE, and PAE with KPTI (E017, E043, E101, E102, E131)."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.replay import small
from tests.replay.both import go_through_the_same

from shadow_mmu import Recording, UnsupportedModeError, load_recording, replay_recording
from shadow_mmu.recording_program import without_accessed_pdptes
from shadow_mmu.report import Mode, ReplayResult

RECORDINGS = Path(__file__).parents[2] / "recordings"
NAMES = ["linux61-32bit-small", "linux61-pae-kpti-small"]
POLICIES = ["locked", "seed", "lru:3"]
CACHED = [f"{name},pae_roots=cached" for name in POLICIES]
COMPARED = 25_000
ACCESSED = 1 << 5


def faultless(result: ReplayResult) -> dict[str, Any]:
    """Return the figures of a replay in which every access reached what the hardware reached."""
    found = result.as_dict()
    assert (found["mismatches"], found["stale_legal"], found["guest_faults"], found["violations"]) == (0, 0, 0, 0)
    assert found["accesses_checked"] > 70_000
    return found


@pytest.fixture(scope="module", params=NAMES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load_recording(RECORDINGS / f"{request.param}.npz")


@pytest.mark.parametrize("mode", ["ordered", "threads"])
def test_every_access_reaches_what_the_hardware_reached_and_every_switch_takes_the_lock(
    recording: Recording, mode: Mode
) -> None:
    report = replay_recording(recording, POLICIES, mode=mode, audit_every=20_000)
    assert report.ok
    for result in report.results:
        found = faultless(result)
        # E017: neither the seed nor the modern kernel caches a root of these guests.
        assert (found["cr3_lockless"], found["cr3_same"]) == (0, found["cr3_same_locked"])
        assert found["cr3_locked"] > 200


@pytest.mark.parametrize("mode", ["ordered", "threads"])
def test_with_cached_roots_of_four_entries_the_same_accesses_reach_the_same_and_most_switches_take_no_lock(
    recording: Recording, mode: Mode
) -> None:
    report = replay_recording(recording, CACHED, mode=mode, audit_every=20_000)
    assert report.ok
    for result in report.results:
        found = faultless(result)
        # The policy before the patch has no cache to put them into. The 32-bit guest has a dozen processes and 202 switches.
        if result.policy.kind == "locked":
            assert found["cr3_lockless"] == 0
        else:
            assert found["cr3_lockless"] > found["cr3_locked"] > 0
            assert found["cr3_locked_miss"] < found["cr3_locked"]


@pytest.mark.parametrize("mode", ["ordered", "threads"])
def test_e043_on_a_host_of_32_bits_the_same_accesses_reach_the_same(recording: Recording, mode: Mode) -> None:
    report = replay_recording(recording, [f"{name},host=pae" for name in POLICIES + CACHED[1:]], mode=mode)
    assert report.ok
    for result in report.results:
        found = faultless(result)
        assert (found["cr3_lockless"] > 0) == result.policy.caches_pae_roots


@pytest.mark.parametrize("paging", ["4-level", "5-level"])
def test_e043_a_recording_of_a_64_bit_guest_is_refused_on_a_host_of_32_bits(tmp_path: Path, paging: str) -> None:
    found = small.arrays([*small.ROWS[:2], (small.CR4, 1, 0, 0, 0x20, 0, 0), *small.ROWS[2:]], paging=paging)
    found["addr"][found["kind"] == small.CR4] |= np.uint64(1 << 12 if paging == "5-level" else 0)
    recording = load_recording(small.write(tmp_path / "long.npz", found))
    with pytest.raises(UnsupportedModeError, match=rf"long.npz: a {paging} guest .*'seed,host=pae' .*expected host=64"):
        replay_recording(recording, ["lru:3", "seed,host=pae"])


@pytest.mark.parametrize("policy", [*POLICIES, *CACHED, "lru:3,host=pae"])
def test_the_model_goes_through_the_same_states_and_events(recording: Recording, policy: str) -> None:
    go_through_the_same(recording, policy, COMPARED)


def test_the_accessed_bit_that_the_emulator_sets_in_pdptes_is_taken_out_and_nothing_else() -> None:
    recording = load_recording(RECORDINGS / "linux61-pae-kpti-small.npz")
    pages, value = without_accessed_pdptes(recording)
    roots = np.unique(recording.addr[recording.kind == 3]) & np.uint64(0xFFFF_FFE0)
    changed = 0
    for row in np.flatnonzero(recording.kind == 1):
        before, after = recording.page_data[recording.value[row]], pages[value[row]]
        at = np.flatnonzero(before != after)
        changed += at.size
        places = recording.addr[row] + 8 * at.astype(np.uint64)
        assert set((places & ~np.uint64(31)).tolist()) <= set(roots.tolist())
        assert set((before[at] ^ after[at]).tolist()) <= {ACCESSED}
    assert changed > 0
    stores = recording.kind == 2
    assert set((recording.value[stores] ^ value[stores]).tolist()) <= {0, ACCESSED}
