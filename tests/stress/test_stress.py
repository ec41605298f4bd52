"""``shadow_mmu.stress``: what a run returns, what it refuses, how it ends."""

import pickle
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from shadow_mmu import ConfigError, Policy, StressPlan, StressReport, StuckError, stress
from shadow_mmu.policy import LOCK_KINDS
from shadow_mmu.stressing.files import load_plan, save_report
from shadow_mmu.stressing.report import NUMBERS


def but_for_holds(report: StressReport) -> list[str]:
    """Other tests take cores away from whoever holds a lock: how long that takes is no finding here."""
    return [str(found) for found in report.findings if found.what != "lock hold"]


def copied(value: object) -> object:
    """Return what comes out of a pickle."""
    return pickle.loads(pickle.dumps(value))  # noqa: S301  of its own making


@pytest.mark.parametrize("lock", LOCK_KINDS)
def test_d5_every_access_is_right_under_every_lock(lock: str) -> None:
    report = stress(vcpus=3, seconds=0.5, seed=1, policy=f"lru:3,lock={lock}", audit_every=2000, check_model=True)
    assert not but_for_holds(report)
    figures = report.figures
    # Of each a few at least: how many fit into half a second is the machine's affair.
    assert min(figures.accesses_checked, figures.edits, figures.shoot_downs, figures.swept) > 10
    assert figures.max_retries <= 16
    assert report.audits > 2
    assert report.modelled > 100
    assert min(report.syncs, report.zaps, report.remote_flushes, report.lock_acquisitions, report.longest_hold_ns) > 0
    assert len(report.per_vcpu) == len(report.tails) == 3
    assert sum(one.operations for one in report.per_vcpu) == figures.operations
    assert all(len(tail) == 64 for tail in report.tails)


@pytest.mark.parametrize("policy", ["locked", "seed", "lru:3", "lru:3,lock=rwlock"])
def test_e044_every_access_is_right_where_the_hardware_walks_the_guests_tables(policy: str) -> None:
    report = stress(vcpus=3, seconds=0.5, seed=1, policy=f"{policy},mmu=tdp", audit_every=2000, check_model=True)
    assert not but_for_holds(report)
    figures = report.figures
    # Of each a few at least: how many fit into half a second is the machine's affair.
    assert min(figures.accesses_checked, figures.edits, figures.shoot_downs, figures.swept) > 10
    assert min(report.audits, report.modelled, report.remote_flushes, figures.host_operations) > 2
    assert (report.syncs, report.zaps) == (0, 0)


def test_a_run_in_turns_is_the_same_every_time() -> None:
    one, again, other = (stress(steps=300, turns=True, seed=seed, lock_times=False) for seed in (5, 5, 6))
    assert one.ok
    assert replace(one, elapsed=0.0) == replace(again, elapsed=0.0)
    assert hash(replace(one, elapsed=0.0)) == hash(replace(again, elapsed=0.0))
    assert one.tails != other.tails


def test_plans_and_reports_are_values() -> None:
    plan = StressPlan(vcpus=2, policy="seed", steps=50, rates={"zap": 0, "leaf": 3})  # type: ignore[arg-type]
    assert plan.policy == Policy.seed()
    assert plan.rates == (("leaf", 3), ("zap", 0))
    assert StressPlan.from_dict(plan.as_dict()) == plan
    assert copied(plan) == plan
    report = stress(steps=50, lock_times=False)
    copy = copied(report)
    assert copy == report
    assert hash(copy) == hash(report)
    found = report.as_dict()
    assert found["figures"]["operations"] == report.figures.operations
    assert set(NUMBERS) <= set(found)
    assert "accesses checked" in report._repr_html_()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"vcpus": 0}, "vcpus is 0: expected a whole number from 1 to 256"),
        ({"vcpus": 257}, "from 1 to 256"),
        ({"vcpus": 2.5}, "vcpus is 2.5"),
        ({"vcpus": 200, "memory": "4MiB"}, "200 vCPUs need .* expected at most [0-9]+ vCPUs or more memory"),
        ({"memory": 4097}, "multiple of 4,096"),
        ({"memory": "lots"}, "no size 'lots'"),
        ({"policy": "lru:3,lock=spin"}, "no lock 'spin': expected queued, ticket, ttas, mutex or rwlock"),
        ({"policy": "fifo"}, "no policy 'fifo'"),
        ({"seconds": 0}, "seconds is 0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"seconds": "1"}, "seconds is '1'"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "seconds": 1}, "expected one of them"),
        ({"turns": True}, "expected steps, not seconds"),
        ({"seed": -1}, "seed is -1"),
        ({"audit_every": True}, "audit_every is True"),
        ({"patience": 0}, "patience is 0"),
        ({"rates": {"noise": 1}}, "no rate 'noise': expected access, switch, leaf"),
        ({"rates": {"access": 0}}, "rate access is 0"),
        ({"rates": {"zap": -1}}, "rate zap is -1"),
    ],
)
def test_a_parameter_out_of_range_is_refused_with_what_is_accepted(arguments: dict[str, object], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        stress(**arguments)  # type: ignore[arg-type]


def test_what_the_callback_raises_ends_the_run() -> None:
    def refuse(_done: int) -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError, match="on purpose"):
        stress(seconds=60, progress=refuse)


def test_r11_another_python_thread_goes_on_meanwhile() -> None:
    steps = 0
    over = threading.Event()

    def count() -> None:
        nonlocal steps
        while not over.is_set():
            steps += 1

    other = threading.Thread(target=count)
    other.start()
    stress(seconds=0.5, lock_times=False)
    over.set()
    other.join()
    assert steps > 1000


def test_a_stuck_vcpu_is_a_typed_error_of_the_package() -> None:
    assert issubclass(StuckError, RuntimeError)


def test_a_saved_run_holds_its_plan(tmp_path: Path) -> None:
    report = stress(steps=30, seed=9, policy="seed,lock=ttas", lock_times=False)
    path = save_report(report, tmp_path / "new" / "folder")
    assert load_plan(path) == report.plan
    assert path == save_report(report, tmp_path / "new" / "folder")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no JSON"),
        ("[]", "expected an object with format 'shadow-mmu stress'"),
        ('{"format": "shadow-mmu stress"}', "has version None: expected 1"),
        ('{"format": "shadow-mmu stress", "version": 2}', "has version 2: expected 1"),
        ('{"format": "shadow-mmu stress", "version": 1}', "has plan None: expected an object"),
        ('{"format": "shadow-mmu stress", "version": 1, "plan": {}}', "got nothing"),
        ('{"format": "shadow-mmu stress", "version": 1, "plan": {"vcpus": 2, "colour": 1}}', "got vcpus, colour"),
    ],
)
def test_a_file_of_another_version_or_a_broken_one_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=expected):
        load_plan(path)
    with pytest.raises(ConfigError, match="cannot read"):
        load_plan(tmp_path / "none.json")


def test_a_plan_in_a_file_is_checked_like_any_other(tmp_path: Path) -> None:
    path = save_report(stress(steps=5, lock_times=False), tmp_path)
    for old, new in (
        ('"vcpus": 2', '"vcpus": 0'),
        ('"turns": false', '"turns": 7'),
        ('"seed": 0,\n  "memory"', '"seed": "x",\n  "memory"'),
    ):
        text = path.read_text()
        assert old in text
        broken = tmp_path / "broken.json"
        broken.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match="expected"):
            load_plan(broken)
