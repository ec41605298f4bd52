"""The stress through the Python package sees rules that are switched off, and keeps what it saw."""

import json
from pathlib import Path
from types import ModuleType

import pytest

from shadow_mmu.stressing.files import load_plan, save_report
from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.stressing.runner import run_plan


@pytest.mark.parametrize("mutant", ["no-remote-flush", "skip-sync", "link-does-not-mark", "sync-without-flush"])
def test_d5_a_rule_that_concurrency_needs_is_missed(mutant_build: ModuleType, mutant: str, tmp_path: Path) -> None:
    plans = (StressPlan(vcpus=2, seconds=0.5, seed=seed, audit_every=500, lock_times=False) for seed in range(60))
    reports = (run_plan(plan, native=mutant_build, mutant=mutant) for plan in plans)
    report = next(report for report in reports if not report.ok)
    assert {found.what for found in report.findings} <= {
        "D.5",
        "audit",
        "memory",
        "reuse",
        "liveness",
        "window",
        "stuck",
    }
    path = save_report(report, tmp_path)
    assert load_plan(path) == report.plan
    saved = json.loads(path.read_text())
    assert saved["findings"][0]["text"]
    assert len(saved["tails"]) == 2


def test_e149_a_root_that_is_zapped_in_silence_is_a_finding_and_no_hang(mutant_build: ModuleType) -> None:
    plan = StressPlan(vcpus=2, seconds=20.0, seed=0, patience=2.0, lock_times=False)
    report = run_plan(plan, native=mutant_build, mutant="obsolete-unannounced")
    found = {found.what for found in report.findings}
    assert found & {"stuck", "liveness"}
    # What an access that was given up leaves undone shows at the end.
    assert found <= {"stuck", "liveness", "audit", "memory"}
    assert not report.ok
