"""``shadow-mmu stress``: exit codes, output, saved runs."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from shadow_mmu import stress
from shadow_mmu.cli import main
from shadow_mmu.stressing.files import save_report


def run(*arguments: str) -> tuple[int, str, str]:
    """Return exit code, stdout, stderr."""
    result = CliRunner().invoke(main, ["stress", *arguments])
    return result.exit_code, result.stdout, result.stderr


def test_one_column_for_each_policy_and_lock() -> None:
    code, out, _ = run(
        "--steps", "100", "--policy", "seed", "--policy", "lru:1", "--lock", "mutex", "--no-lock-times", "--model"
    )
    assert code == 0
    for text in ("seed,lock=mutex", "lru:1,lock=mutex", "shoot-downs", "compared with the", "violations"):
        assert text in out


def test_json_is_one_object() -> None:
    code, out, _ = run("--steps", "50", "--seed", "7", "--json", "--no-lock-times", "--vcpus", "3")
    assert code == 0
    (result,) = json.loads(out)["results"]
    assert result["plan"]["seed"] == 7
    assert len(result["per_vcpu"]) == 3
    assert result["finding_count"] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--vcpus", "0"), "expected a whole number from 1 to 256"),
        (("--vcpus", "100", "--memory", "4MiB"), "expected at most"),
        (("--lock", "spin"), "'queued', 'ticket', 'ttas', 'mutex', 'rwlock'"),
        (("--policy", "fifo"), "'locked', 'seed' or 'lru:N'"),
        (("--turns",), "expected steps, not seconds"),
        (("--seconds", "nan"), "expected more than 0"),
        (("--replay", "nowhere.json"), "cannot read"),
    ],
)
def test_wrong_usage_is_code_2_with_the_valid_choices(arguments: tuple[str, ...], text: str) -> None:
    code, out, err = run(*arguments)
    assert code == 2
    assert not out
    assert text in " ".join(err.split())


def test_a_saved_run_is_run_again_and_says_what_that_means(tmp_path: Path) -> None:
    path = save_report(stress(steps=40, seed=3, policy="seed", lock_times=False), tmp_path)
    code, out, err = run("--replay", str(path), "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["plan"] == json.loads(path.read_text())["plan"]
    assert "on threads they meet differently each time" in err
    path = save_report(stress(steps=40, seed=3, turns=True, lock_times=False), tmp_path)
    code, out, err = run("--replay", str(path), "--json")
    assert code == 0
    assert json.loads(out)["results"][0]["tails"] == json.loads(path.read_text())["tails"]
    assert not err


def test_a_file_of_another_version_is_code_2(tmp_path: Path) -> None:
    path = save_report(stress(steps=5, lock_times=False), tmp_path)
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))
    code, _, err = run("--replay", str(path))
    assert code == 2
    assert "has version 99: expected 1" in err


CHILD = """\
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from shadow_mmu.cli import main
main(["stress", "--seconds", "60", "--json", "--no-lock-times"])
"""


def test_r11_ctrl_c_keeps_and_prints_the_figures() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        time.sleep(3)
        began = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    # 200 ms on a machine that has nothing else to do.
    assert time.monotonic() - began < 10
    assert child.returncode == 130
    (result,) = json.loads(out)["results"]
    assert result["interrupted"]
    assert result["figures"]["operations"] > 0
    assert b"interrupted" in err


def test_many_runs_are_rows() -> None:
    policies = [option for policy in ("locked", "seed", "lru:0", "lru:1", "lru:3") for option in ("--policy", policy)]
    code, out, _ = run("--steps", "20", "--no-lock-times", *policies)
    assert code == 0
    assert "stress, 2 vCPUs, seed 0" in out
    assert "lru:0 " in out
    assert "shoot-downs" in out
