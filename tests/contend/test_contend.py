"""Contention: the counts that make a row valid, what is printed, what is drawn, what is refused."""

import dataclasses
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from shadow_mmu import ConfigError, MissingExtraError, Policy, Vm, cli
from shadow_mmu.contend import ContentionReport, ContentionRow, contend, measure, plots
from shadow_mmu.contend.cells import Counts, Group, build
from shadow_mmu.contend.report import rate
from shadow_mmu.contend.table import contention_table, print_contention
from shadow_mmu.ops import program, work
from shadow_mmu.policy import LOCK_KINDS
from shadow_mmu.stats import Quantiles, RunReport
from shadow_mmu.tables import console

KEYS = {
    "workload", "policy", "lock", "link", "pae_roots", "mmu", "host", "vcpus", "work_ns", "switches", "samples", "switches_per_second", "noisy", "void",
    "best_switches_per_second", "rates", "acquisitions_per_switch", "contended_share", "wait_ns", "hold_ns",
    "longest_wait", "over_locked",
}  # fmt: skip


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["contend", *(str(one) for one in arguments)])


def row(policy: str = "seed", **changes: object) -> ContentionRow:
    made = ContentionRow(
        workload="kpti",
        policy=Policy.parse(policy),
        vcpus=2,
        work=0,
        switches=1000,
        rates=(9e6, 10e6, 12e6),
        noisy=False,
        acquisitions_per_switch=0.0,
        contended_share=0.0,
        wait_ns=None,
        hold_ns=None,
        longest_wait=None,
        void=(),
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def report(*rows: ContentionRow) -> ContentionReport:
    return ContentionReport(rows, repeat=3, seed=0, cpus=2)


def test_the_fast_path_takes_no_lock_and_the_locked_one_takes_it_each_switch() -> None:
    """The gate of the headline: counts, never times."""
    done = run("--json", "--workload", "kpti", "--repeat", 2, "--switches", 500)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["repeat"], found["interrupted"]) == (2, False)
    rows = found["rows"]
    assert [set(one) for one in rows] == [KEYS] * len(rows)
    for one in rows:
        assert Policy.parse(one["policy"]).lock == one["lock"]
        one["policy"] = Policy.parse(one["policy"]).name
    cells = [(one["policy"], one["lock"], one["vcpus"]) for one in rows]
    assert cells == [(policy, lock, vcpus) for vcpus in (1, 2) for policy in ("locked", "seed") for lock in LOCK_KINDS]
    for one in rows:
        assert one["void"] == []
        # Asked for: those of each vCPU.
        assert one["switches"] == one["vcpus"] * 500
        if one["policy"] == "seed":
            assert one["acquisitions_per_switch"] == 0
            assert one["wait_ns"] is one["hold_ns"] is None
        else:
            assert one["acquisitions_per_switch"] >= 1
            assert one["hold_ns"]["p50"] > 0
            assert one["longest_wait"]["ns"] >= one["wait_ns"]["p50"]
            assert one["longest_wait"]["reason"] in {"load", "free", "sync", "fault", "host"}
        assert one["switches_per_second"] > 0
    # Three acquisitions and a flush a switch against none: even on a busy machine this much shows in one thread's best.
    best = {(one["policy"], one["lock"]): one["best_switches_per_second"] for one in rows if one["vcpus"] == 1}
    assert best["seed", "queued"] > 1.2 * best["locked", "queued"]


def test_churn_is_measured_with_every_fault_that_it_means_to_have() -> None:
    found = contend(["fork", "threads"], ["locked", "lru:3,lock=ticket"], vcpus=[2], switches=400, repeat=2)
    assert found.ok, found
    assert [(one.workload, one.policy.kind) for one in found.rows] == [
        ("fork", "locked"), ("fork", "lru"), ("threads", "locked"), ("threads", "lru"),
    ]  # fmt: skip
    for one in found.rows:
        assert 400 < one.switches < 1600
        assert one.acquisitions_per_switch > 0
        assert one.wait_ns is not None
        assert one.hold_ns is not None
    locked, lru = found.rows[:2]
    assert locked.acquisitions_per_switch > lru.acquisitions_per_switch


def test_the_order_is_there_and_back(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, bool]] = []
    real = measure.sample_of

    def watched(group: Group, policy: Policy, *, timed: bool = False) -> measure.Sample:
        order.append((str(policy), timed))
        return dataclasses.replace(real(group, policy, timed=timed), clean=True)

    monkeypatch.setattr(measure, "sample_of", watched)
    told: list[int] = []
    contend(["kpti"], ["locked", "seed"], vcpus=[1], switches=50, repeat=3, progress=told.append)
    a, b = "locked", "seed"
    assert [name for name, timed in order if timed] == [a, b], "one look is enough if it is clean"
    assert [name for name, timed in order if not timed] == [a, b, b, a, a, b]
    assert told == list(range(1, 9))
    assert told[-1] == measure.runs_of(1, 2, 1, 1, repeat=3)


def test_disturbed_samples_do_not_count_and_too_many_make_a_row_noisy(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.sample_of
    taken = 0

    def disturbed(group: Group, policy: Policy, *, timed: bool = False) -> measure.Sample:
        nonlocal taken
        taken += not timed
        # Every other sample of locked is clean, none of seed.
        clean = policy.kind == "locked" and taken % 4 < 2
        return dataclasses.replace(real(group, policy, timed=timed), clean=clean)

    monkeypatch.setattr(measure, "sample_of", disturbed)
    found = contend(["kpti"], ["locked", "seed"], vcpus=[1], switches=50, repeat=2)
    locked, seed = found.rows
    assert (locked.noisy, len(locked.rates)) == (False, 2)
    assert (seed.noisy, len(seed.rates)) == (True, 16)
    assert found.ratio(seed) is None
    # With more vCPUs than CPUs no sample is clean, and all count.
    crowd = len(os.sched_getaffinity(0)) + 1
    (alone,) = contend(["kpti"], ["seed"], vcpus=[crowd], switches=50, repeat=2).rows
    assert (alone.noisy, len(alone.rates)) == (False, 2)


@pytest.mark.parametrize(
    ("overlap", "starved", "clean"),
    [(0.95, 0.005, True), (0.85, 0.005, False), (0.95, 0.02, False), (0.95, None, True)],
)
def test_a_clean_sample_is_one_that_ran_side_by_side(overlap: float, starved: float | None, clean: bool) -> None:  # noqa: FBT001  parametrized
    found = RunReport(seconds=1.0, overlap=overlap, starved=starved, ops_done=(9, 9), faults=0, outcomes=None)
    assert measure._is_clean(found) is clean


def test_a_run_tells_how_long_its_programs_ran_side_by_side_and_had_no_cpu() -> None:
    crowd = len(os.sched_getaffinity(0)) + 1
    busy = program([work(30_000_000)])
    with Vm("1MiB", vcpus=crowd) as vm:
        alone = vm.run([busy], pin=True)
        assert alone.overlap == alone.seconds
        together = vm.run([busy] * crowd, pin=True)
    assert 0 <= together.overlap <= together.seconds
    assert alone.starved is not None
    assert together.starved is not None
    # Two of them share a CPU: while one works the other one waits.
    assert 0.005 < together.starved < together.seconds


def test_a_count_that_disagrees_voids_the_row_and_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    real = measure.sample_of

    def one_lock_too_many(group: Group, policy: Policy, *, timed: bool = False) -> measure.Sample:
        sample = real(group, policy, timed=timed)
        counts = dataclasses.replace(sample.counts, acquisitions=sample.counts.acquisitions + 1)
        return dataclasses.replace(sample, counts=counts) if policy.kind == "seed" else sample

    monkeypatch.setattr(measure, "sample_of", one_lock_too_many)
    options = ("--workload", "kpti", "--lock", "queued", "--vcpus", 1, "--switches", 50, "--repeat", 1)
    done = run(*options)
    assert done.exit_code == 1
    assert "void" in done.stdout
    assert "1 acquisitions and 50 lock-free switches on the fast path: expected none" in done.stdout.replace("\n", " ")
    found = json.loads(run(*options, "--json").stdout)["rows"]
    assert [bool(one["void"]) for one in found] == [False, True]
    assert found[1]["over_locked"] is None


@pytest.mark.parametrize(
    ("policy", "counts", "right"),
    [
        ("seed", Counts(9, 9, 9, 0, 0), True),
        ("lru:1", Counts(9, 9, 9, 0, 0), True),
        ("seed", Counts(9, 9, 9, 1, 0), False),
        ("seed", Counts(9, 9, 8, 0, 0), False),
        ("seed", Counts(9, 8, 9, 0, 0), False),
        ("locked", Counts(9, 9, 0, 9, 0), True),
        ("locked", Counts(9, 9, 0, 8, 0), False),
        ("locked", Counts(9, 9, 1, 27, 0), False),
        # No previous root: every switch misses.
        ("lru:0", Counts(9, 9, 0, 18, 0), True),
    ],
)
def test_counts_are_judged_by_the_policy(policy: str, counts: Counts, right: bool) -> None:  # noqa: FBT001  parametrized
    assert (counts.disagree("kpti", Policy.parse(policy)) == []) is right


def test_a_guest_that_reads_wrong_voids_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    group = build("fork", 1, 0, 100, 0)
    group.workload.programs[0]["expect"][6] ^= 1 << 12
    monkeypatch.setattr(measure, "build", lambda *_arguments: group)
    found = contend(["fork"], ["seed"], vcpus=[1], repeat=1)
    assert not found.ok
    assert "vCPU 0, operation 6:" in found.rows[0].void[0]


def test_a_sample_can_be_given_a_length() -> None:
    (short,) = contend(["kpti"], ["locked"], vcpus=[1], seconds=0.001, repeat=1).rows
    (long,) = contend(["kpti"], ["locked"], vcpus=[1], seconds=0.02, repeat=1).rows
    assert long.switches > 2 * short.switches


def test_ratios_are_over_the_locked_row_with_the_same_lock() -> None:
    slow, slower = row("locked", rates=(1e6,)), row("locked,lock=ticket", rates=(0.5e6,))
    fast, ticket, odd = row(), row("seed,lock=ticket"), row("seed,lock=ttas")
    found = report(slow, slower, fast, ticket, odd)
    assert [found.ratio(one) for one in found.rows] == [1, 1, 10, 20, None]
    assert report(slow, row(vcpus=4)).ratio(row(vcpus=4)) is None
    for spoilt in ({"void": ("x",)}, {"noisy": True}):
        assert report(row("locked", **spoilt), fast).ratio(fast) is None
        assert report(slow, row(**spoilt)).ratio(row(**spoilt)) is None


def test_reports_are_values_that_show_themselves(capsys: pytest.CaptureFixture[str]) -> None:
    times = Quantiles(30, 2500, 31_700_000)
    found = report(
        row("locked", rates=(1e6, 2e6, 4e6), wait_ns=times, hold_ns=times), row(), row(void=("7 done, 8 asked for",))
    )
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301  our own
    assert hash(found) == hash(report(*found.rows))
    html = found._repr_html_()
    assert html.startswith("<table")
    for text in ("2.00 M", "(4.00 M)", "30/2.50k/31.7M", "5.00x", "void", "kpti, 2 vCPUs, g 0"):
        assert text in html
    print_contention(found, console())
    printed = capsys.readouterr().out
    assert "void: kpti, seed, 2 vCPUs, g = 0: 7 done, 8 asked for" in printed
    assert max(map(len, printed.splitlines())) <= 120
    assert "…" not in printed
    assert contention_table(found).row_count == 3


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1.00 k"), (16_029_192, "16.0 M"), (999_999, "1000 k")]
)
def test_rates_have_three_digits(value: float, text: str) -> None:
    assert rate(value) == text


@pytest.mark.parametrize("suffix", [".png", ".svg"])
@pytest.mark.parametrize("vcpus", [(2,), (1, 2, 4)])
def test_the_plot_is_drawn(tmp_path: Path, suffix: str, vcpus: tuple[int, ...]) -> None:
    rows = [
        row(f"{policy},lock={lock}", vcpus=count, workload=workload, work=work, noisy=lock == "ttas")
        for workload in ("kpti", "threads")
        for work in (0, 1400)
        for count in vcpus
        for policy in ("locked", "seed", "lru:3")
        for lock in LOCK_KINDS
    ]
    found = report(*rows, row(void=("x",), vcpus=vcpus[0]))
    path = tmp_path / f"plot{suffix}"
    plots.plot(found, path)
    head = path.read_bytes()[:100]
    assert head.startswith(b"\x89PNG") if suffix == ".png" else b"<?xml" in head
    if suffix == ".svg":
        assert "thread churn, g = 1,400 ns" in path.read_text()
        again = tmp_path / "again.svg"
        plots.plot(found, again)
        assert again.read_bytes() == path.read_bytes()
    figure = plots.draw(found)
    assert [panel.get_title() for panel in figure.axes] == [
        f"{name}, g = {work} ns" for name in ("KPTI ping-pong", "thread churn") for work in ("0", "1,400")
    ]
    for panel in figure.axes:
        assert panel.get_yscale() == "linear"
        shown = panel.lines if len(vcpus) > 1 else panel.patches
        assert len(shown) == 3 * len(LOCK_KINDS)
    assert "1 void rows left out" in figure.get_suptitle()
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert texts == ["locked", "seed", "lru:3", *(LOCK_KINDS if len(vcpus) > 1 else ()), "noisy"]


def test_bars_that_differ_much_begin_at_a_power_of_ten() -> None:
    (panel,) = plots.draw(report(row("locked", rates=(2e6,)), row("seed", rates=(138e6,)))).axes
    assert (panel.get_yscale(), panel.get_ylim()[0]) == ("log", 1e6)
    (panel,) = plots.draw(report(row("locked", rates=(2e6,)), row("seed", rates=(13e6,)))).axes
    assert (panel.get_yscale(), panel.get_ylim()[0]) == ("linear", 0)


def test_lines_that_differ_much_are_on_a_logarithmic_axis() -> None:
    for fastest, scale in ((138e6, "log"), (7e6, "linear")):
        rows = [row("locked", rates=(2e6,), vcpus=vcpus) for vcpus in (1, 2)]
        rows += [row("seed", rates=(fastest,), vcpus=vcpus) for vcpus in (1, 2)]
        (panel,) = plots.draw(report(*rows)).axes
        assert panel.get_yscale() == scale


def test_the_command_draws_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "plot.svg"
    done = run("--workload", "kpti", "--lock", "mutex", "--switches", 50, "--repeat", 1, "--plot", path, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"]
    assert f"drawn to {path}" in done.stderr.replace("\n", "")
    assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["--lock", "spin"], ["spin", *LOCK_KINDS]),
        (["--workload", "exec"], ["exec", "kpti", "fork", "threads"]),
        (["--policy", "fast"], ["no policy 'fast'", "locked", "seed", "lru:N"]),
        (["--policy", "seed,lock=ticket", "--lock", "ttas"], ["names a lock"]),
        (["--vcpus", "0"], ["--vcpus", "1<=x<=1024"]),
        (["--vcpus", "1025"], ["--vcpus", "1<=x<=1024"]),
        (["--vcpus", "2", "--vcpus", "2"], ["number of vCPUs 2 is given twice"]),
        (["--workload", "kpti", "--workload", "kpti"], ["workload 'kpti' is given twice"]),
        (["--lock", "mutex", "--lock", "mutex"], ["mutex", "twice"]),
        (["--work", "-1"], ["--work"]),
        (["--switches", "0"], ["--switches"]),
        (["--seconds", "0"], ["seconds is 0.0", "60"]),
        (["--seconds", "nan"], ["seconds is nan"]),
        (["--repeat", "0"], ["--repeat"]),
        (["--seed", "-1"], ["--seed"]),
        (["--plot", "plot.pdf"], ["plot.pdf", ".png or .svg"]),
        (["--plot", "plot"], [".png or .svg"]),
        (["--plot", "not/there/plot.png"], ["expected a file in a folder that is there"]),
        (["--workload", "threads", "--switches", "10000000", "--vcpus", "1024"], ["20,000,000 operations"]),
    ],
)
def test_wrong_usage_is_exit_code_2_with_the_choices(arguments: list[str], texts: list[str]) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    for text in texts:
        assert text in " ".join(done.stderr.split()), done.stderr


def test_a_plot_without_matplotlib_names_the_extra(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    done = run("--plot", tmp_path / "plot.png")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "pip install 'shadow-mmu[plot]'" in " ".join(done.stderr.split())
    with pytest.raises(MissingExtraError, match=r"shadow-mmu\[plot\]"):
        plots.plot(report(row()), tmp_path / "plot.png")


def test_nothing_to_draw_and_nothing_to_do_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no row to draw"):
        plots.plot(report(row(void=("x",))), tmp_path / "plot.png")
    nothing: list[dict[str, Any]] = [{"workloads": []}, {"policies": []}, {"vcpus": []}, {"work": []}]
    for options in nothing:
        with pytest.raises(ConfigError, match="expected at least one"):
            contend(**options)
    with pytest.raises(ConfigError, match="no workload 'exec': expected kpti, fork or threads"):
        contend(["exec"])
    with pytest.raises(ConfigError, match="vcpus is True"):
        contend(vcpus=[True])


def _heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_prints_what_was_measured() -> None:
    options = ["--json", "--workload", "kpti", "--policy", "locked", "--vcpus", "1", "--repeat", "1000"]
    with subprocess.Popen(
        [sys.executable, "-m", "shadow_mmu", "contend", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A shell starts what runs in the background with Ctrl-C ignored, and a child inherits that.
        preexec_fn=_heed_ctrl_c,  # noqa: PLW1509  nothing else runs in this process between fork and exec
    ) as child:
        time.sleep(3)
        child.send_signal(signal.SIGINT)
        out, err = child.communicate(timeout=60)
    assert child.returncode == 130, err
    found = json.loads(out)
    assert found["interrupted"]
    assert found["rows"]
    assert 0 < len(found["rows"][0]["rates"]) < 8000
    assert b"interrupted" in err
    assert b"Traceback" not in err
