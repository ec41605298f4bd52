"""The command line: what it prints, its exit codes, what it refuses."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tests.replay import small

from shadow_mmu import cli
from shadow_mmu.differential import Divergence, Finding
from shadow_mmu.workloads.random import random_stream

KPTI_KEYS = {"workload", "vcpus", "processes", "switches", "edits", "seed", "results"}


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, [str(one) for one in arguments])


def process(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "shadow_mmu", *(str(one) for one in arguments)]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return small.write(tmp_path / "tiny.npz", small.arrays())


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    arrays = small.arrays()
    arrays["value"][14] ^= 0x1000
    return small.write(tmp_path / "wrong.npz", arrays)


def test_a_replay_prints_one_column_a_policy(tiny: Path) -> None:
    done = run("replay", tiny)
    assert done.exit_code == 0, done.output
    for text in ("tiny: 19 events", "locked", "seed", "lru:3", "lock-free", "mismatches", "mode ordered, model native"):
        assert text in done.stdout
    assert "INVLPG takes the mmu_lock once for each valid root" in done.stdout
    assert done.stderr == ""


def test_json_is_one_object_and_nothing_else(tiny: Path) -> None:
    done = run(
        "replay", tiny, "--json", "--policy", "lru:1", "--policy", "lru:8", "--mode", "threads", "--audit-every", 5
    )
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert (report["recording"], report["events"]) == ("tiny", 19)
    assert [(one["policy"], one["mode"], one["mismatches"]) for one in report["results"]] == [
        ("lru:1", "threads", 0),
        ("lru:8", "threads", 0),
    ]
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


@pytest.mark.parametrize("model", ["native", "python"])
def test_a_mismatch_is_exit_code_1_and_names_its_event(wrong: Path, model: str) -> None:
    done = run("replay", wrong, "--policy", "seed", "--model", model)
    assert done.exit_code == 1
    assert "seed: mismatch: event 14: vCPU 0 READ 0x400018 came to 0x22018, recorded 0x23018" in done.stdout
    as_json = run("replay", wrong, "--policy", "seed", "--model", model, "--json")
    assert as_json.exit_code == 1
    (result,) = json.loads(as_json.stdout)["results"]
    assert (result["mismatches"], result["mismatch_list"][0]["event"]) == (1, 14)
    assert run("replay", wrong, "--policy", "seed", "--no-check").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--policy", "lru:17"], "no policy 'lru:17'"),
        (["--policy", "lru:-1"], "no policy 'lru:-1'"),
        (["--policy", "lru:x"], "expected 'locked', 'seed' or 'lru:N'"),
        (["--policy", "seed", "--policy", "seed"], "'seed' is given twice"),
        (["--audit-every", "0"], "--audit-every"),
        (["--audit-every", "-5"], "--audit-every"),
        (["--audit-every", "x"], "--audit-every"),
        (["--mode", "fast"], "--mode"),
        (["--model", "rust"], "--model"),
        (["--model", "python", "--mode", "threads"], "--model python has no threads"),
        (["--what"], "No such option"),
        (["another"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_exit_code_2(tiny: Path, arguments: list[str], text: str) -> None:
    done = run("replay", tiny, *arguments)
    assert done.exit_code == 2
    assert text in done.stderr
    assert done.stdout == ""


def test_a_bad_file_is_exit_code_2(tmp_path: Path, tiny: Path) -> None:
    cut = tmp_path / "cut.npz"
    cut.write_bytes(tiny.read_bytes()[:500])
    old = small.write(tmp_path / "old.npz", small.arrays(paging="PAE"))
    for path, text in (
        (tmp_path / "absent.npz", "no such file"),
        (cut, "truncated"),
        (old, "PAE paging"),
        (tmp_path, "unreadable"),
    ):
        done = run("replay", path)
        assert (done.exit_code, done.stdout) == (2, "")
        assert text in done.stderr
        assert str(path) in done.stderr.replace("\n", "")
    assert run("replay").exit_code == 2


def test_help_names_every_option_of_a_policy_with_its_values() -> None:
    text = " ".join(run("replay", "--help").stdout.split())
    for option in ("link=mark-first|kvm|full-sync", "pae_roots=uncached|cached", "mmu=shadow|tdp", "host=64|pae"):
        assert option in text


def test_help_and_version_are_there() -> None:
    for arguments in (["--help"], ["replay", "--help"], ["run", "--help"], ["run", "kpti", "--help"], ["diff", "-h"]):
        done = run(*arguments)
        assert done.exit_code == 0
        assert "Usage:" in done.stdout
    assert "0." in run("--version").stdout
    for option in ("--policy", "--mode", "--model", "--check / --no-check", "--audit-every", "--lock-times", "--json"):
        assert option in run("replay", "--help").stdout


def test_each_policy_is_run_with_each_lock(tiny: Path) -> None:
    given = ("--policy", "seed", "--policy", "lru:3", "--lock", "ticket", "--lock", "queued", "--json")
    for arguments in (("replay", tiny, *given), ("run", "kpti", "--switches", 50, *given)):
        done = run(*arguments)
        assert done.exit_code == 0, done.output
        results = json.loads(done.stdout)["results"]
        assert [(one["policy"], one["lock"]) for one in results] == [
            ("seed,lock=ticket", "ticket"),
            ("seed", "queued"),
            ("lru:3,lock=ticket", "ticket"),
            ("lru:3", "queued"),
        ]
    named = run("replay", tiny, "--policy", "seed,lock=rwlock")
    assert named.exit_code == 0
    for text in ("seed,lock=rwlock", "shared / contended", "longest hold ns"):
        assert text in named.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--lock", "mcs"], "'queued', 'ticket', 'ttas', 'mutex', 'rwlock'"),
        (["--policy", "seed,lock=mcs"], "no lock 'mcs': expected queued, ticket, ttas, mutex or rwlock"),
        (["--policy", "seed,lock=ttas", "--lock", "ticket"], "names a lock"),
        (["--lock", "ttas", "--lock", "ttas"], "given twice"),
        (["--policy", "seed,speed=9"], "no option 'speed=9'"),
    ],
)
def test_a_wrong_lock_is_refused_with_the_choices(tiny: Path, arguments: list[str], expected: str) -> None:
    for command in (("replay", tiny), ("run", "kpti")):
        done = run(*command, *arguments)
        assert done.exit_code == 2
        assert expected in " ".join(done.stderr.split())
        assert done.stdout == ""


def test_kpti_compares_policies() -> None:
    done = run(
        "run", "kpti", "--switches", 2000, "--edits", 0.05, "--processes", 2, "--policy", "locked", "--policy", "lru:3"
    )
    assert done.exit_code == 0, done.output
    for text in ("switches / s", "mmu_lock acquisitions", "contended", "wait ns"):
        assert text in done.stdout
    as_json = run("run", "kpti", "--switches", 1000, "--vcpus", 1, "--json", "--seed", 7)
    report = json.loads(as_json.stdout)
    assert report.keys() >= KPTI_KEYS
    locked, seed = report["results"]
    assert (locked["policy"], locked["cr3_lockless"]) == ("locked", 0)
    assert (seed["policy"], seed["cr3_lockless"]) == ("seed", 999)
    assert seed["mmu_lock"]["contended"] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--vcpus", "0"],
        ["--vcpus", "1025"],
        ["--processes", "0"],
        ["--switches", "0"],
        ["--edits", "-1"],
        ["--edits", "nan"],
        ["--seed", "-1"],
        ["--policy", "lru:99"],
    ],
)
def test_kpti_refuses_what_makes_no_sense(arguments: list[str]) -> None:
    done = run("run", "kpti", *arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert arguments[0].strip("-") in done.stderr


def test_a_differential_run_tells_that_nothing_differs(tmp_path: Path) -> None:
    done = run("diff", "--ops", 500, "--seed", 3, "--save", tmp_path)
    assert done.exit_code == 0, done.output
    assert "500 operations from seed 3: no divergence" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_divergence_is_exit_code_1_and_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finding = Finding(5, random_stream(5, 40), Divergence(39, "state", "word 3 is 0x1 left, 0x0 right"))
    monkeypatch.setattr("shadow_mmu.differential.hunt", lambda *_args, **_options: finding)
    done = run("diff", "--save", tmp_path / "new")
    assert done.exit_code == 1
    (path,) = (tmp_path / "new").iterdir()
    assert path.name.startswith("state-")
    assert f"written to {path}" in done.stdout.replace("\n", "")
    assert "word 3 is 0x1 left" in path.read_text()


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("model", ["python", "native"])
def test_ctrl_c_prints_what_was_done_so_far(kpti_path: Path, model: str) -> None:
    # An audit before every event keeps the core busy for long enough.
    options = [*(option for n in range(17) for option in ("--policy", f"lru:{n}")), "--audit-every", 1]
    with subprocess.Popen(
        process("replay", kpti_path, "--json", "--model", model, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what runs in the background with Ctrl-C ignored, and a child inherits that.
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  nothing else runs in this process between fork and exec
    ) as child:
        # Time for imports, loading and part of the replays, which take longer in all.
        time.sleep(3)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    report = json.loads(out)
    assert report["interrupted"]
    assert len(report["results"]) < 17
    assert b"interrupted" in err
    assert b"Traceback" not in err


def test_the_bar_goes_to_a_terminal_on_stderr_only(kpti_path: Path) -> None:
    """On a terminal stderr has a bar; stdout is the JSON object still."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen(
        process("replay", kpti_path, "--json", "--model", "python", "--policy", "seed"),
        stdout=subprocess.PIPE,
        stderr=slave,
        env=environment,
    ) as child:
        os.close(slave)
        shown = b""
        while True:
            ready, _, _ = select.select([master], [], [], 0.2)
            if ready:
                try:
                    shown += os.read(master, 65536)
                except OSError:  # the other side is closed
                    break
            elif child.poll() is not None:
                break
        assert child.stdout is not None
        out = child.stdout.read()
    os.close(master)
    assert child.returncode == 0, shown
    assert json.loads(out)["recording"] == "linux61-4level-kpti-small"
    assert b"linux61-4level-kpti-small" in shown
    assert b"%" in shown
