"""Policies, configurations, programs and results are values: they compare, hash, copy and pickle, and say what they are.

The classes are found by looking through the package, and their instances are drawn by their annotations: a class that is
added is tested, or has to be named below with a reason.
"""

import copy
import dataclasses
import enum
import importlib
import inspect
import json
import operator
import pickle
import pkgutil
import re
import typing
from collections.abc import Callable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tests.api.fields import differ
from tests.api.guest import GVA, SIZE, boot

import shadow_mmu
from shadow_mmu import Memslot, Policy, Recording, Vm, VmConfig, errors, ops, replay_recording
from shadow_mmu.cpu import CpuModel
from shadow_mmu.frozen import FrozenDict
from shadow_mmu.litmus.timeline import Timeline
from shadow_mmu.policy import HOSTS, LINK_ORDERS, LOCK_KINDS, MMU_KINDS, PAE_ROOTS
from shadow_mmu.stressing.plan import StressPlan
from shadow_mmu.workloads.runner import run_kpti

LIVING = {
    "shadow_mmu.dumps.elf.ElfDump": "an open file",
    "shadow_mmu.dumps.page_tables.PageTables": "reads an open file",
    "shadow_mmu.contend.cells.Group": "has a workload, whose memory can be written",
    "shadow_mmu.workloads.workload.Workload": "has an image, whose memory can be written",
}
"""Frozen classes that are no values: two of them are equal if they are one."""
INNER = ("shadow_mmu.model.", "shadow_mmu.litmus.")
"""The inside of the model and of the explorer; what comes out of them is named next."""
OUTER = ("shadow_mmu.litmus.verdict.", "shadow_mmu.litmus.timeline.")


def modules() -> Iterator[Any]:
    for found in pkgutil.walk_packages(shadow_mmu.__path__, "shadow_mmu."):
        if not found.name.endswith("__main__"):
            yield importlib.import_module(found.name)


def public_classes() -> dict[str, type[Any]]:
    """Every class of the package whose name does not say that it is private."""
    return {
        f"{module.__name__}.{name}": found
        for module in modules()
        for name, found in vars(module).items()
        if inspect.isclass(found) and found.__module__ == module.__name__ and not name.startswith("_")
    }


CLASSES = public_classes()
FROZEN = {
    name: found
    for name, found in CLASSES.items()
    if dataclasses.is_dataclass(found)
    and found.__dataclass_params__.frozen  # type: ignore[attr-defined]
    and (not name.startswith(INNER) or name.startswith(OUTER))
}
VALUES = {name: found for name, found in FROZEN.items() if name not in LIVING}

PICTURES = ("shadow_mmu.pagewalk.types.PageWalk", "shadow_mmu.dumps.maps.MappedRange")
"""Their ``repr`` is a drawing of what they found: it needs parts that fit together."""
# Instances are large, and a failure is understood without making it small.
SETTINGS = settings(
    suppress_health_check=list(HealthCheck), max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate]
)

words = st.integers(0, (1 << 64) - 1)
pages = st.integers(0, 1 << 20).map(lambda page: page << 12)
texts = st.text(max_size=12) | st.sampled_from(["[bold]", "<b>&amp;</b>", "a\nb", "\x00"])
memslots = st.builds(Memslot, pages, st.integers(1, 1 << 10).map(lambda count: count << 12))
policies = st.builds(
    Policy.lru,
    st.integers(0, 16),
    lock=st.sampled_from(LOCK_KINDS),
    link=st.sampled_from(LINK_ORDERS),
    pae_roots=st.sampled_from(PAE_ROOTS),
    mmu=st.sampled_from(MMU_KINDS),
) | st.builds(Policy.seed, pae_roots=st.sampled_from(PAE_ROOTS), host=st.sampled_from(HOSTS))
processors = st.builds(CpuModel, maxphyaddr=st.integers(36, 52), nx=st.booleans(), long_mode=st.booleans())
configs = st.builds(
    VmConfig,
    st.integers(1, 1 << 20).map(lambda count: count << 12),
    vcpus=st.integers(1, 1024),
    policy=policies,
    tlb_entries=st.integers(0, 1 << 16),
    cpu=processors,
    trace=st.booleans(),
    lock_times=st.booleans(),
)
metas = st.fixed_dictionaries(
    {"vcpus": st.integers(1, 4), "ram_bytes": pages, "paging": st.just("4-level")},
    optional={"notes": st.lists(texts, max_size=2), "more": st.dictionaries(texts, st.integers(), max_size=2)},
).map(FrozenDict)


def arrays(annotation: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401  of an array type
    dtype: np.dtype[Any] = np.dtype(np.uint8)
    for argument in typing.get_args(typing.get_args(annotation)[-1]):
        if isinstance(argument, type) and issubclass(argument, np.generic) and argument is not np.void:
            dtype = np.dtype(argument)
    if dtype == np.dtype(np.uint8) and "void" in str(annotation):
        dtype = ops.OUTCOME
    return st.binary(max_size=3 * dtype.itemsize).map(
        lambda raw: np.frombuffer(raw[: len(raw) // dtype.itemsize * dtype.itemsize], dtype)
    )


plans = st.builds(
    StressPlan,
    vcpus=st.integers(2, 4),
    policy=policies.map(lambda policy: dataclasses.replace(policy, host="64")),
    seconds=st.none(),
    steps=st.integers(1, 1 << 20),
    seed=st.integers(0, 9),
    turns=st.booleans(),
)
BY_CLASS: dict[Any, st.SearchStrategy[Any]] = {
    StressPlan: plans,
    int: words,
    bool: st.booleans(),
    float: st.floats(allow_nan=False),
    str: texts,
    Path: texts.map(lambda text: Path(re.sub("[\x00/]", "_", text) or "x")),
    Memslot: memslots,
    Policy: policies,
    VmConfig: configs,
    CpuModel: processors,
    ops.Op: st.builds(ops.Op, st.integers(0, 15), st.integers(0, 63), st.integers(0, 3), addr=words),
}


def drawn(annotation: Any) -> st.SearchStrategy[Any]:  # noqa: ANN401  any type; one line a kind
    """Return a strategy for what an annotation says."""
    if annotation in BY_CLASS:
        return BY_CLASS[annotation]
    if annotation is type(None):
        return st.none()
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return st.sampled_from(arguments)
    if origin is np.ndarray or annotation is np.ndarray:
        return arrays(annotation) if arguments else st.just(np.zeros(2, ops.OP))
    if origin is tuple and arguments[-1] is Ellipsis:
        return st.lists(drawn(arguments[0]), max_size=2).map(tuple)
    if origin is tuple:
        return st.tuples(*map(drawn, arguments))
    if origin is not None and inspect.isclass(origin) and issubclass(origin, Mapping):
        return st.dictionaries(drawn(arguments[0]), drawn(arguments[1]), max_size=3).map(FrozenDict)
    if arguments and origin is not None:  # a union
        return st.one_of(*map(drawn, arguments))
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return st.sampled_from(list(annotation))
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return instances(annotation)
    if isinstance(annotation, type) and issubclass(annotation, tuple):  # a NamedTuple
        return st.builds(annotation, *map(drawn, typing.get_type_hints(annotation).values()))
    if annotation in (Any, bytes):
        return st.binary(max_size=4)
    pytest.fail(f"no way to draw a {annotation}: add one above")


def instances(of: type[Any]) -> st.SearchStrategy[Any]:
    """Return a strategy for a dataclass: every field by its annotation, whatever fits together or not."""
    if of in BY_CLASS:
        return BY_CLASS[of]
    names = {"npt": npt, "np": np, "Mapping": Mapping, "Any": Any}
    names |= {found.__name__: found for found in CLASSES.values()}
    hints = typing.get_type_hints(of, vars(importlib.import_module(of.__module__)), names)
    fields = {field.name: drawn(hints[field.name]) for field in dataclasses.fields(of) if field.init}
    if of is Recording:
        fields["meta"] = metas
    return st.builds(of, **fields)


def is_a_value(one: Any, *, drawing: bool = False) -> None:  # noqa: ANN401  of any class
    copies = [copy.copy(one), copy.deepcopy(one)]
    copies += [pickle.loads(pickle.dumps(one, protocol)) for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1)]  # noqa: S301  our own
    for other in copies:
        assert type(other) is type(one)
        assert other == one
        assert not (other != one)  # noqa: SIM202  the operator is the test
        assert hash(other) == hash(one)
        assert drawing or repr(other) == repr(one)
    assert one != object()
    assert drawing or re.match(r"<?[A-Za-z]", repr(one))
    assert drawing or " object at 0x" not in repr(one)
    with pytest.raises((AttributeError, TypeError)):
        setattr(one, dataclasses.fields(one)[0].name if dataclasses.is_dataclass(one) else "kind", 0)


def test_what_is_tested_is_what_there_is() -> None:
    assert set(LIVING) <= set(FROZEN)
    assert len(VALUES) >= 35
    for name in ("Policy", "VmConfig", "Memslot", "MmioExit", "Stats", "LockStats", "RunReport", "ShadowPage"):
        assert any(found.rpartition(".")[2] == name for found in VALUES), name
    for name in ("ReplayReport", "ReplayResult", "Recording", "KptiReport", "ContentionReport", "Verdict"):
        assert any(found.rpartition(".")[2] == name for found in VALUES), name


@pytest.mark.parametrize("name", sorted(VALUES))
@SETTINGS
@given(data=st.data())
def test_a_value_compares_hashes_copies_and_pickles(name: str, data: st.DataObject) -> None:
    is_a_value(data.draw(instances(VALUES[name])), drawing=name in PICTURES)


@pytest.mark.parametrize("name", sorted(VALUES))
@SETTINGS
@given(data=st.data())
def test_values_that_differ_in_a_field_are_not_equal(name: str, data: st.DataObject) -> None:
    """The other side of equality: a field that is compared decides, and equal values have equal hashes."""
    one, other = data.draw(instances(VALUES[name])), data.draw(instances(VALUES[name]))
    if one == other:
        assert hash(one) == hash(other)
    else:
        compared = [field.name for field in dataclasses.fields(one) if field.compare]
        assert any(differ(getattr(one, field), getattr(other, field)) for field in compared)


@given(st.builds(ops.Op, *[st.integers(0, 255)] * 3, st.integers(0, 9), words, words, words))
def test_operations_are_values_and_programs_pickle(op: ops.Op) -> None:
    is_a_value(op)
    program = ops.program([op, op])
    assert pickle.loads(pickle.dumps(program)).tobytes() == program.tobytes()  # noqa: S301  our own
    assert copy.deepcopy(program).dtype == ops.OP


@pytest.mark.parametrize("kind", [found for found in CLASSES.values() if issubclass(found, enum.Enum)])
def test_the_members_of_enumerations_stay_themselves(kind: type[enum.Enum]) -> None:
    for member in kind:
        assert pickle.loads(pickle.dumps(member)) is member  # noqa: S301  our own
        assert copy.deepcopy(member) is member


ERRORS = sorted(
    (found for found in vars(errors).values() if inspect.isclass(found) and found.__module__ == errors.__name__),
    key=lambda found: found.__name__,
)


@pytest.mark.parametrize("kind", ERRORS)
def test_errors_cross_process_boundaries(kind: type[Exception]) -> None:
    made: dict[str, Callable[[], Exception]] = {
        "PageFault": lambda: errors.PageFault(0x1000, 6),
        "GeneralProtection": errors.GeneralProtection,
        "TripleFault": errors.TripleFault,
        "DumpError": lambda: errors.DumpError(Path("x"), "a note", offset=16, found=3, expected="2"),
        "MissingExtraError": lambda: errors.MissingExtraError("a plot", "matplotlib", "plot"),
    }
    error = made.get(kind.__name__, lambda: kind("the text"))()
    for other in (pickle.loads(pickle.dumps(error)), copy.copy(error), copy.deepcopy(error)):  # noqa: S301  our own
        assert type(other) is kind
        assert (str(other), vars(other)) == (str(error), vars(error))


# -------------------------------------------------------------------------------- what machines really return


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    """Results of real work."""
    from shadow_mmu.litmus.verdict import run as judge

    with Vm(SIZE, vcpus=2, lock_times=True) as vm:
        boot(vm)
        program = ops.program([ops.load(GVA), ops.access(0x1000)])
        return {
            "run": vm.run([program] * 2, outcomes=True),
            "run without outcomes": vm.run([program]),
            "stats": vm.stats,
            "shadow pages": tuple(vm.shadow_pages()),
            "config": vm.config,
            "memslots": vm.memory.slots,
            "kpti": run_kpti(switches=50),
            "verdict": judge("P1"),
            "bad verdict": judge("P1", "O_SPTE=RLX"),
        }


def test_results_of_real_work_are_values(results: dict[str, Any], kpti: Recording) -> None:
    report = replay_recording(kpti, ["seed", "lru:3,lock=ticket"])
    for one in (*results.values(), report, report.results[0].stats, kpti):
        for other in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one), copy.copy(one)):  # noqa: S301  our own
            assert other == one
            assert hash(other) == hash(one)
            assert repr(other) == repr(one)
            if hasattr(one, "as_dict"):
                assert json.dumps(other.as_dict()) == json.dumps(one.as_dict())
    assert len({report, copy.deepcopy(report), results["stats"]}) == 2


def test_a_run_differs_from_one_with_other_outcomes(results: dict[str, Any]) -> None:
    run = results["run"]
    changed = tuple(one.copy() for one in run.outcomes)
    changed[1]["value"][0] += 1
    other = dataclasses.replace(run, outcomes=changed)
    assert other != run
    assert dataclasses.replace(run, outcomes=None) != run
    assert run != "run"


def test_r12_a_configuration_makes_the_same_machine_in_another_process() -> None:
    config = VmConfig([Memslot(1 << 20, 4096), Memslot(0, 8192)], vcpus=3, policy="seed", tlb_entries=7, trace=True)
    with Vm.from_config(pickle.loads(pickle.dumps(config))) as vm:  # noqa: S301  our own
        assert vm.config == config
        assert (vm.memory.slots, len(vm.vcpus), vm.policy) == (config.memory, 3, Policy.seed())
        vm.add_memslot(1 << 30, 4096)
        assert vm.config == config
    assert VmConfig("8KiB") == VmConfig(8192) == VmConfig([Memslot(0, 8192)])
    assert dataclasses.replace(config, vcpus=1).vcpus == 1
    with pytest.raises(errors.ConfigError, match="expected a VmConfig"):
        Vm.from_config({"memory": 4096})  # type: ignore[arg-type]


# -------------------------------------------------------------------------------- HTML for notebooks


class Page(HTMLParser):
    """What is in a piece of HTML: its tags, its text, and whether every tag is closed."""

    VOID = ("meta", "br")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"{self.open} is not closed"

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  the interface
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  the interface
        self.tags.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


REPORTS = {name: found for name, found in CLASSES.items() if name.endswith("Report")}


def test_every_report_shows_itself_in_a_notebook() -> None:
    assert len(REPORTS) >= 4
    assert [name for name, found in REPORTS.items() if not hasattr(found, "_repr_html_")] == []


SHOWN = {name: found for name, found in VALUES.items() if hasattr(found, "_repr_html_")}
NASTY = "<script>alert('x')</script>&[bold]"


def test_the_html_of_results_is_a_table_with_their_figures(results: dict[str, Any], kpti: Recording) -> None:
    report = replay_recording(kpti, ["seed", "lru:3"])
    replayed = Page(report._repr_html_())
    for text in (f"{kpti.events:,} events", "lru:3", "lock-free", f"{report.results[0].accesses_checked:,}"):
        assert text in replayed.text
    assert {"table", "th", "td"} <= replayed.tags
    assert "KPTI ping-pong: 2 vCPUs" in Page(results["kpti"]._repr_html_()).text
    assert "vCPU 1" in Page(results["run"]._repr_html_()).text
    assert "pf_fixed" in Page(results["stats"]._repr_html_()).text
    assert "p1_publish3 under rc11: ok" in Page(results["verdict"]._repr_html_()).text
    assert "svg" in Page(results["bad verdict"]._repr_html_()).tags


def nasty(value: Any) -> Any:  # noqa: ANN401  any value
    """Put markup into every text of a value."""
    if isinstance(value, str):
        return NASTY
    if isinstance(value, Timeline):  # drawn: the kinds of its steps are colours
        steps = tuple(dataclasses.replace(step, text=NASTY, note=NASTY) for step in value.steps)
        return dataclasses.replace(value, steps=steps, verdict=NASTY, initial=NASTY)
    if isinstance(value, tuple):
        return tuple(map(nasty, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type) and type(value) not in BY_CLASS:
        changed = {field.name: nasty(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


@pytest.mark.parametrize("which", ["replay", "kpti", "verdict", "bad verdict"])
def test_no_name_becomes_markup(which: str, results: dict[str, Any], kpti: Recording) -> None:
    one = replay_recording(kpti, ["seed"]) if which == "replay" else results[which]
    page = Page(nasty(one)._repr_html_())
    assert "script" not in page.tags
    if which != "kpti":  # it has no text of anybody else
        assert "<script>" in page.text


def test_names_with_markup_are_printed_as_they_are(kpti: Recording, capsys: pytest.CaptureFixture[str]) -> None:
    from shadow_mmu.tables import console, print_replay

    report = dataclasses.replace(replay_recording(kpti, ["seed"]), recording="[bold]x[/nothing]")
    print_replay(report, console())
    assert "[bold]x[/nothing]: " in capsys.readouterr().out


# -------------------------------------------------------------------------------- frozen mappings


@given(st.dictionaries(texts, st.integers() | st.tuples(st.integers()) | texts, max_size=5))
def test_a_frozen_mapping_is_a_mapping_and_a_value(items: dict[str, Any]) -> None:
    one = FrozenDict(items)
    assert one == items
    assert dict(one) == items
    assert list(one) == list(items)
    assert len(one) == len(items)
    assert {one, FrozenDict(dict(reversed(items.items())))} == {one}
    assert pickle.loads(pickle.dumps(one)) == copy.copy(one) == copy.deepcopy(one) == one  # noqa: S301  our own
    assert repr(one) == f"FrozenDict({items!r})"
    items["another"] = 1
    assert "another" not in one or one != items
    changes: list[Callable[[], object]] = [
        lambda: setattr(one, "_items", {}),
        lambda: setattr(one, "x", 1),
        lambda: operator.setitem(one, "x", 1),  # type: ignore[call-overload]
        lambda: operator.delitem(one, "x"),  # type: ignore[call-overload]
    ]
    for change in changes:
        with pytest.raises((AttributeError, TypeError)):
            change()


def test_a_frozen_mapping_of_what_cannot_be_hashed_says_so() -> None:
    with pytest.raises(TypeError, match="set can be no part of a value"):
        hash(FrozenDict({"x": {1}}))
