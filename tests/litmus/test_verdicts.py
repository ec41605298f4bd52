"""Every verdict of the tables, in every model that they state, and in the time that was set."""

import time
from collections import Counter

import pytest
from tests.litmus import c_reader
from tests.litmus.verdict_tables import DATA, cases, herd

from shadow_mmu.litmus import CATALOGUE, MODELS, find, run
from shadow_mmu.litmus.explore import explore

SECONDS = 60
GENMC, TEXTBOOK = cases("genmc"), cases("textbook")


def text(case: tuple[str, str, str]) -> str:
    return " ".join(filter(None, case))


@pytest.mark.parametrize("case", GENMC, ids=text)
def test_a_protocol_has_the_verdict_of_genmc(case: tuple[str, str, str]) -> None:
    assert run(*case).outcome == GENMC[case]


@pytest.mark.parametrize("case", TEXTBOOK, ids=text)
def test_a_textbook_test_has_the_verdict_of_the_literature(case: tuple[str, str, str]) -> None:
    assert run(*case).outcome == TEXTBOOK[case]


def test_all_cases_of_the_table_are_reproduced_within_a_minute() -> None:
    start = time.perf_counter()
    right = Counter(
        (name, setting)
        for name, setting, model in GENMC
        if run(name, setting, model).outcome == GENMC[name, setting, model]
    )
    assert time.perf_counter() - start < SECONDS
    stated = Counter((name, setting) for name, setting, _ in GENMC)
    assert len(stated) == 111
    assert stated == right


def test_the_tables_tell_the_models_apart() -> None:
    """A table in which every model says the same would test one of them three times."""
    for weaker, stronger in (("rc11", "tso"), ("tso", "sc")):
        differ = [
            (name, setting)
            for name, setting, model in GENMC
            if model == weaker and GENMC[name, setting, weaker] != GENMC[name, setting, stronger]
        ]
        assert len(differ) >= 14, (weaker, stronger)


@pytest.mark.parametrize("table", [GENMC, TEXTBOOK], ids=["genmc", "textbook"])
def test_table_and_catalogue_name_the_same_cases(table: dict[tuple[str, str, str], str]) -> None:
    family = "textbook" if table is TEXTBOOK else "protocol"
    tests = [test for test in CATALOGUE.values() if test.family == family]
    listed = {(test.name, frozenset(case.setting.split())) for test in tests for case in test.cases}
    # GenMC's table has a case for P1 in which a knob is set to its default.
    assert {(name, frozenset(setting.split())) for name, setting, _ in table} == listed


@pytest.mark.parametrize("name", [name for name in herd() if name.startswith("C-")])
def test_a_c_test_of_herd_has_herds_verdict(name: str) -> None:
    program = c_reader.read((DATA / "herd" / f"{name}.litmus").read_text())
    word = "Never" if explore(program, MODELS["rc11"]).bad is None else "Sometimes"
    assert word == herd()[name]


@pytest.mark.parametrize(
    ("name", "test", "setting"),
    [
        # The x86 tests of herd, in the words of the catalogue: MOV is Relaxed, MFENCE is a SeqCst fence.
        ("X86-P1-all-mov", "P1", "O_SPTE=RLX O_WALK=RLX O_SIGST=RLX O_SIGLD=RLX O_CHK=RLX"),
        ("X86-P2-mfence", "P2", ""),
        ("X86-P2-no-fence", "P2", "F_ACC=F_NONE F_EMU=F_NONE"),
    ],
)
def test_an_x86_test_of_herd_has_herds_verdict(name: str, test: str, setting: str) -> None:
    word = "Never" if run(test, setting, "tso").ok else "Sometimes"
    assert word == herd()[name]


@pytest.mark.parametrize(
    ("name", "executions"),
    [("P1", 3), ("P1b", 2), ("P1c", 8), ("P2", 3), ("P3", 5), ("P4", 3), ("P5", 3), ("P6", 4), ("P7", 6), ("P8", 3), ("P8b", 4), ("P11", 58), ("P12", 6)],
)  # fmt: skip
def test_a_correct_protocol_has_as_many_executions_as_genmc_counts(name: str, executions: int) -> None:
    assert explore(find(name).program(), MODELS["rc11"], to_the_end=True).executions == executions


@pytest.mark.parametrize("name", [name for name, test in CATALOGUE.items() if test.family == "protocol"])
def test_a_weaker_model_allows_no_less(name: str) -> None:
    for case in CATALOGUE[name].cases:
        verdicts = [run(name, case.setting, model).ok for model in MODELS]
        assert verdicts == sorted(verdicts, reverse=True)
