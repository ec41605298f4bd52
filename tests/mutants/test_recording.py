"""Negative controls on the shipped recording: what a replay must notice, and the command line say (E162, D.5)."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tests.replay import small

import shadow_mmu
from shadow_mmu import Recording, replay_recording
from shadow_mmu.report import Mode, ReplayResult


def replay_with(
    monkeypatch: pytest.MonkeyPatch, module: ModuleType, mutant: str, recording: Recording, mode: Mode = "ordered"
) -> ReplayResult:
    """Replay on the test build with a rule switched off."""

    def machine(**options: object) -> object:
        return module.Vm(**options, mutant=mutant)

    monkeypatch.setattr(shadow_mmu, "_native", SimpleNamespace(Vm=machine), raising=False)
    monkeypatch.setitem(sys.modules, "shadow_mmu._native", SimpleNamespace(Vm=machine))
    return replay_recording(recording, ["lru:3"], mode=mode).results[0]


def test_the_command_line_names_the_event_of_one_altered_gpa(kpti_path: Path, tmp_path: Path) -> None:
    with np.load(kpti_path) as arrays:
        altered = {name: arrays[name] for name in arrays}
    kinds, values = altered["kind"], altered["value"].copy()
    row = 300_000 + int(np.flatnonzero(kinds[300_000:] == small.READ)[0])
    values[row] ^= 0x1000
    path = tmp_path / "altered.npz"
    np.savez_compressed(path, **{**altered, "value": values})
    command = [sys.executable, "-m", "shadow_mmu", "replay", str(path), "--policy", "seed"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"event {row:,}" in done.stdout + done.stderr or f"event {row}" in done.stdout + done.stderr
    listed = subprocess.run([*command, "--json"], capture_output=True, text=True, check=False)
    assert listed.returncode == 1
    assert json.loads(listed.stdout)["results"][0]["mismatches"] == 1


def test_the_recording_has_no_mismatch_on_the_test_build_with_nothing_switched_off(
    monkeypatch: pytest.MonkeyPatch, mutant_build: ModuleType, kpti: Recording
) -> None:
    result = replay_with(monkeypatch, mutant_build, "none", kpti)
    assert (result.accesses_checked, result.mismatch_count, result.guest_faults) == (399_490, 0, 0)


@pytest.mark.parametrize("mode", ["ordered", "threads"])
@pytest.mark.parametrize("mutant", ["alter-one-spte", "skip-sync"])
def test_one_altered_spte_and_a_sync_switched_off_are_mismatches(
    mutant: str, mode: Mode, monkeypatch: pytest.MonkeyPatch, mutant_build: ModuleType, kpti: Recording
) -> None:
    result = replay_with(monkeypatch, mutant_build, mutant, kpti, mode)
    assert result.mismatch_count > 0
    assert not result.ok
    assert result.mismatches[0].event < kpti.events
