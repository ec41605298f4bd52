"""``shadow-mmu litmus``: what it prints, its exit codes, what it refuses."""

import json
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shadow_mmu import litmus as package
from shadow_mmu.cli import main
from shadow_mmu.errors import ConfigError
from shadow_mmu.litmus.cli import litmus


def run(*arguments: object) -> Result:
    return CliRunner().invoke(litmus, [str(one) for one in arguments])


def test_the_list_is_a_json_array_of_all_tests() -> None:
    done = run("list", "--json")
    assert done.exit_code == 0
    listed = json.loads(done.stdout)
    assert isinstance(listed, list)
    assert [one["name"] for one in listed] == list(package.CATALOGUE)
    names = {one["name"] for one in listed}
    assert {"p1_publish3", "p1b_publish2", "p1c_skip", "p8b_dirty", "p11_full", "MP", "SB", "IRIW", "2+2W"} <= names
    publish = listed[0]
    assert (publish["short"], publish["models"]) == ("P1", ["sc", "tso", "rc11"])
    assert {"weaken": "O_SPTE=RLX", "title": "SPTE store Relaxed"} in publish["cases"]
    assert publish["knobs"]["O_SPTE"][0] == "REL"
    assert publish["knobs"]["MUT_SPTE_FIRST"] == ["off", "1"]


def test_the_group_is_part_of_the_command_line() -> None:
    done = CliRunner().invoke(main, ["litmus", "run", "MP"])
    assert done.exit_code == 0, done.output


def test_every_listed_case_can_be_run() -> None:
    for one in json.loads(run("list", "--json").stdout):
        for case in one["cases"]:
            assert run("run", one["name"], "--weaken", case["weaken"], "--json").exit_code in {0, 1}


def test_the_list_is_a_table_without_json() -> None:
    done = run("list")
    assert done.exit_code == 0
    for text in ("p12_link", "P12", "ORDER=0: sync, link, mark", "CoRR2"):
        assert text in done.stdout


def test_a_correct_protocol_is_exit_code_0_and_says_so() -> None:
    done = run("run", "p1_publish3")
    assert done.exit_code == 0, done.output
    assert "RC11 (C11 and Rust): ok, the forbidden outcome is in no execution (3 executions" in done.stdout
    assert "host" not in done.stdout.splitlines()[-1]
    assert done.stderr == ""


def test_a_bad_outcome_is_exit_code_1_and_a_timeline_of_the_cpus() -> None:
    done = run("run", "P1", "--weaken", "O_SPTE=RLX", "--model", "rc11")
    assert done.exit_code == 1
    assert re.search(r"step .* host .* guest A .* guest B", done.stdout)
    assert "older than step 3 (uchild = 1)" in done.stdout
    assert "SPTE store Relaxed" in done.stdout
    assert run("run", "P1", "--weaken", "O_SPTE=RLX", "--model", "tso").exit_code == 0


def test_json_is_one_object() -> None:
    verdict = json.loads(run("run", "p2_account", "--weaken", "F_ACC=F_NONE", "--model", "tso", "--json").stdout)
    assert (verdict["test"], verdict["weaken"], verdict["model"]) == ("p2_account", "F_ACC=F_NONE", "tso")
    assert (verdict["verdict"], verdict["kind"]) == ("BAD", "outcome")
    assert verdict["timeline"]["cpus"] == ["fault", "emulator"]
    assert json.loads(run("run", "P2", "--json").stdout)["timeline"] is None


def test_the_timeline_is_drawn_to_a_file(tmp_path: Path) -> None:
    target = tmp_path / "p1.svg"
    done = run("run", "P1", "--weaken", "O_WALK=RLX", "--svg", target)
    assert done.exit_code == 1
    assert target.read_text().startswith("<svg ")
    assert "guest B" in target.read_text()
    assert str(target) in done.stderr.replace("\n", "")


def test_there_is_nothing_to_draw_if_nothing_is_bad(tmp_path: Path) -> None:
    target = tmp_path / "p1.svg"
    done = run("run", "P1", "--svg", target)
    assert done.exit_code == 0
    assert "no bad execution to draw" in done.stderr
    assert not target.exists()


def test_a_drawing_that_cannot_be_written_is_exit_code_2(tmp_path: Path) -> None:
    done = run("run", "P1", "--weaken", "O_WALK=RLX", "--svg", tmp_path / "absent" / "p1.svg")
    assert done.exit_code == 2
    assert "cannot write" in done.stderr


def test_the_export_is_a_c_litmus_test_and_nothing_else() -> None:
    done = run("run", "P2", "--weaken", "F_ACC=F_NONE", "--export", "herd")
    assert done.exit_code == 0
    assert done.stdout.startswith("C p2_account-F_ACC-F_NONE\n\n{ [mmu_lock]=0;")
    assert re.search(r"exists \(.*\[leaf\]=1.*\)\n\Z", done.stdout)


def test_the_order_of_the_knobs_does_not_matter() -> None:
    done = run("run", "P1", "--weaken", "O_SPTE=RLX  O_FLAG=SCQ")
    assert done.exit_code == 1
    assert "SeqCst on the flag stores instead of Release" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (["P99"], ["no litmus test 'P99'", "p1_publish3", "p11_full", "IRIW"]),
        (["P1", "--model", "arm"], ["no memory model 'arm'", "sc, tso, rc11"]),
        (["P1", "--weaken", "O_SPT=RLX"], ["no knob 'O_SPT'", "'O_SPTE=RLX'", "O_WALK=RLX|ACQ|REL|ACQ_REL|SCQ"]),
        (["P1", "--weaken", "O_SPTE=WEAK"], ["O_SPTE cannot be 'WEAK'", "RLX|ACQ|REL"]),
        (["P1", "--weaken", "O_SPTE"], ["O_SPTE cannot be ''"]),
        (["P1", "--weaken", "F_CHK=ACQ"], ["F_CHK cannot be 'ACQ'", "F_NONE|F_ACQ|F_REL|F_ACQ_REL|F_SC"]),
        (["P1", "--weaken", "MUT_SPTE_FIRST=2"], ["MUT_SPTE_FIRST is a switch"]),
        (["P1", "--weaken", "O_SPTE=RLX O_SPTE=REL"], ["'O_SPTE' is set twice"]),
        (["P12", "--weaken", "ORDER=4"], ["ORDER cannot be '4'", "ORDER=0|1|2|3"]),
        (["CoRR", "--weaken", "O_LD=RLX"], ["its weakenings are none; its knobs are none"]),
        (["P1", "--export", "genmc"], ["--export", "herd"]),
        ([], ["Missing argument"]),
    ],
)
def test_wrong_usage_is_exit_code_2_and_names_the_choices(arguments: list[str], texts: list[str]) -> None:
    done = run("run", *arguments)
    assert done.exit_code == 2
    assert done.stdout == ""
    for text in texts:
        assert text in done.stderr


@pytest.mark.parametrize("arguments", [("P99",), ("P1", "X=1"), ("P1", "", "arm"), ("P1", "O_SPTE=WEAK")])
def test_the_library_raises_the_typed_error(arguments: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError):
        package.run(*arguments)
