"""``shadow-mmu run fork`` and ``shadow-mmu run threads``."""

import json

import pytest
from click.testing import CliRunner, Result

from shadow_mmu import ConfigError, cli
from shadow_mmu.workloads import runner
from shadow_mmu.workloads.churn import ChurnReport, run_churn
from shadow_mmu.workloads.workload import Workload


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli.main, ["run", *(str(one) for one in arguments)])


@pytest.mark.parametrize(
    ("arguments", "title"),
    [
        (["fork", "--forks", 8, "--child-writes", 2], "fork: 2 vCPUs, forks 8, pages 48, child writes 2"),
        (["threads", "--cycles", 8, "--moves", 1], "threads: 2 vCPUs, cycles 8, pages 4, stack 4, shared 8, moves 1"),
    ],
)
def test_churn_compares_policies(arguments: list[object], title: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    assert title in " ".join(done.stdout.split())
    for text in ("faults that are meant, in all", "switches / s", "locked", "seed", "mmu_lock acquisitions"):
        assert text in " ".join(done.stdout.split())
    assert done.stderr == ""
    found = json.loads(run(*arguments, "--json", "--policy", "lru:3", "--vcpus", 1, "--lock", "ticket").stdout)
    (result,) = found["results"]
    assert (found["workload"], found["vcpus"], found["interrupted"]) == (arguments[0], 1, False)
    assert (result["policy"], result["faults"], result["violations"]) == ("lru:3,lock=ticket", 0, [])
    assert result["cr3_writes"] == found["switches"]
    assert result["counters"]["pf_guest"] == found["meant_faults"] > 0


def test_an_access_that_comes_out_wrong_is_exit_code_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Workload, "wrong", lambda _self, _outcomes: ["vCPU 0, operation 7: wrong"])
    done = run("fork", "--forks", 2)
    assert done.exit_code == 1
    assert "locked: violation: vCPU 0, operation 7: wrong" in done.stdout


def test_ctrl_c_keeps_the_policies_that_were_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    real, runs = runner._run_one, 0

    def interrupted(*arguments: object, **options: object) -> object:
        nonlocal runs
        runs += 1
        if runs == 2:
            raise KeyboardInterrupt
        return real(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(runner, "_run_one", interrupted)
    done = run("threads", "--cycles", 4, "--json")
    assert done.exit_code == 130
    found = json.loads(done.stdout)
    assert found["interrupted"]
    assert [one["policy"] for one in found["results"]] == ["locked"]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["fork", "--vcpus", "0"], "--vcpus"),
        (["fork", "--forks", "0"], "forks is 0: expected a whole number from 1"),
        (["fork", "--pages", "513"], "pages is 513: expected a whole number from 1 to 512"),
        (["fork", "--execs", "nan"], "execs is nan"),
        (["fork", "--lock", "spin"], "queued"),
        (["fork", "--seed", "-1"], "--seed"),
        (["threads", "--cycles", "x"], "--cycles"),
        (["threads", "--moves", "1.5"], "moves is 1.5: expected a number of moves a cycle from 0 to 1"),
        (["threads", "--cycles", "10000000"], "more than 20,000,000 operations"),
        (["exec"], "No such command"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert text in " ".join(done.stderr.split())


def test_a_report_is_a_value() -> None:
    report = run_churn("fork", ["seed"], vcpus=1, forks=2, lock_times=False)
    assert report.ok
    assert report.rates == (("forks", 2),)
    assert report == ChurnReport("fork", 1, 0, (("forks", 2),), report.switches, report.meant_faults, report.results)
    with pytest.raises(ConfigError, match="no workload 'exec': expected fork or threads"):
        run_churn("exec", ["seed"])  # type: ignore[arg-type]
