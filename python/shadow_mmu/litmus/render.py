"""Verdicts and the catalogue as the command line shows them."""

from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from shadow_mmu.litmus.catalogue import Litmus
from shadow_mmu.litmus.models import MODELS
from shadow_mmu.litmus.timeline import Step, Timeline
from shadow_mmu.litmus.verdict import Verdict

__all__ = ["print_catalogue", "print_verdict"]

_STYLES: Final = {"step": "", "weak": "yellow", "bad": "bold red"}


def timeline_table(timeline: Timeline) -> Table:
    """Return a timeline as a table, the CPUs as columns."""
    table = Table(caption=f"at the start {timeline.initial}", caption_justify="left")
    table.add_column("step", justify="right")
    for cpu in timeline.cpus:
        table.add_column(cpu)
    table.add_column("")
    for step in timeline.steps:
        table.add_row(*_cells(step, len(timeline.cpus)))
    return table


def _cells(step: Step, cpus: int) -> list[Text]:
    style = _STYLES[step.kind]
    columns = [Text(step.text if cpu == step.cpu else "", style) for cpu in range(cpus)]
    return [Text(str(step.number)), *columns, Text(step.note, style)]


def print_verdict(test: Litmus, verdict: Verdict, out: Console) -> None:
    """Print what was asked, the verdict and, if it is bad, the timeline."""
    out.print(f"{test.name}: {test.title}", markup=False)
    out.print(f"  forbidden: {test.forbids}", markup=False)
    if verdict.weaken:
        out.print(f"  weakened: {verdict.weaken}", markup=False)
    out.print(f"  that is: {test.title_of(verdict.weaken)}", markup=False)
    counts = f"{verdict.executions:,} executions, {verdict.blocked:,} still waiting, {verdict.seconds:.3f} s"
    title = MODELS[verdict.model].title
    if verdict.timeline is None:
        out.print(f"{title}: ok, the forbidden outcome is in no execution ({counts})", markup=False)
        return
    out.print(f"{title}: BAD, found after {counts}", markup=False)
    out.print(timeline_table(verdict.timeline))
    out.print(Text(verdict.timeline.verdict, _STYLES["bad"]))


def print_catalogue(tests: list[Litmus], out: Console) -> None:
    """Print the tests and their weakenings."""
    table = Table()
    for column in ("test", "short", "what it is about; its weakenings"):
        table.add_column(column)
    for test in tests:
        lines = [test.title, *(f"  {case.setting}: {case.title}" for case in test.cases if case.setting)]
        table.add_row(Text(test.name), Text(test.short), Text("\n".join(lines)), end_section=True)
    out.print(table)
