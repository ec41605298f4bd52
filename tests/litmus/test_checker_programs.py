"""The programs that the checker of the Rust code is tested with are those of the catalogue, with today's findings."""

import json

import pytest
from tests.litmus import checker_programs
from tests.litmus.checker_programs import PROGRAMS, lines
from tests.litmus.verdict_tables import cases


def test_the_file_is_what_the_catalogue_comes_to() -> None:
    assert PROGRAMS.read_text().splitlines() == list(lines()), f"write it anew: python -m {checker_programs.__name__}"


def test_it_has_all_cases_of_genmc() -> None:
    stated = {(name, frozenset(setting.split())) for name, setting, model in cases("genmc") if model == "rc11"}
    written = {
        (name, frozenset(setting.split()))
        for name, _, setting in (
            json.loads(line)["name"].partition(" | ") for line in PROGRAMS.read_text().splitlines()
        )
    }
    # A case of P1 that sets a knob to its default is the correct form.
    assert {setting for _, setting in stated - written} <= {frozenset({"O_SIGLD=RLX", "O_CHK=ACQ"})}
    assert len(stated & written) >= 110


@pytest.mark.parametrize("kind", ["claim", "race", "outcome", None])
def test_each_sort_of_finding_is_among_them(kind: str | None) -> None:
    assert any(json.loads(line)["bad"] == kind for line in PROGRAMS.read_text().splitlines())
