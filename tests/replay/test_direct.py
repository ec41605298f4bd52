"""Every shipped recording in two dimensions: the hardware walks the recorded tables themselves (E018, E044).

What is checked is where each access ended. The counters of shadow tables (unsync pages, trapped writes, flooding) stay 0 here, and
nothing that a replay checks rests on them.
"""

from pathlib import Path

import pytest
from tests.replay.both import go_through_the_same

from shadow_mmu import Recording, load_recording, replay_recording
from shadow_mmu.report import Mode

RECORDINGS = Path(__file__).parents[2] / "recordings"
POLICIES = ["locked,mmu=tdp", "seed,mmu=tdp", "lru:3,mmu=tdp"]
COMPARED = 25_000


NAMES = sorted(path.stem for path in RECORDINGS.glob("*.npz"))
# On threads the others take long: tests/replay/test_whole_recordings.py has them all.
THREADED = ["linux61-4level-kpti-small", "linux61-32bit-small"]


@pytest.fixture(scope="module", params=NAMES)
def recording(request: pytest.FixtureRequest) -> Recording:
    return load_recording(RECORDINGS / f"{request.param}.npz")


@pytest.mark.parametrize(
    ("recording", "mode"),
    [*((name, "ordered") for name in NAMES), *((name, "threads") for name in THREADED)],
    indirect=["recording"],
)
def test_e018_e044_every_access_reaches_what_the_hardware_reached(recording: Recording, mode: Mode) -> None:
    report = replay_recording(recording, POLICIES, mode=mode, audit_every=20_000)
    assert report.ok
    locked, seed, lru = report.results
    for result in report.results:
        found = result.as_dict()
        assert (found["mismatches"], found["stale_legal"], found["guest_faults"], found["violations"]) == (0, 0, 0, 0)
        assert found["accesses_checked"] > 70_000
        counters = result.stats.counters
        assert all(
            counters[name] == 0 for name in ("pf_guest", "pf_emulate", "mmu_unsync", "mmu_pte_write", "mmu_flooded")
        )
        # A frame is mapped once, for every vCPU; two that meet at one may both have exited.
        assert counters["pf_fixed"] < 40_000
        assert counters["pf_taken"] == counters["pf_fixed"] + counters["pf_spurious"]
    # E018: the modern kernel hits with any CR3, the seed with the last one of a 64-bit guest, and before the patch none did.
    assert lru.stats.cr3.locked == 0
    assert lru.stats.cr3.lockless == locked.stats.cr3.locked > 200
    assert (seed.stats.cr3.lockless > seed.stats.cr3.locked) == ("level" in recording.name)


@pytest.mark.parametrize("policy", POLICIES)
def test_e044_the_model_goes_through_the_same_states_and_events(recording: Recording, policy: str) -> None:
    go_through_the_same(recording, policy, COMPARED)
