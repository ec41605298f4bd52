"""Stress runs as tables, on a console and as HTML."""

from collections.abc import Callable, Sequence
from typing import Final

from rich.console import Console
from rich.table import Table

from shadow_mmu.stressing.report import StressReport
from shadow_mmu.text import html_table

__all__ = ["print_stress", "stress_html"]

_SHOWN: Final = 10
# More runs than these are shown as rows.
_COLUMNS: Final = 4


def _figure(name: str) -> Callable[[StressReport], str]:
    return lambda report: f"{getattr(report.figures, name):,}"


def _number(name: str) -> Callable[[StressReport], str]:
    return lambda report: f"{getattr(report, name):,}"


def _hold(report: StressReport) -> str:
    return f"{report.longest_hold_ns / 1e6:.3f}" if report.longest_hold_ns else "-"


_ROWS: Final[Sequence[tuple[str, Callable[[StressReport], str]]]] = (
    ("seconds", lambda report: f"{report.elapsed:.1f}"),
    ("operations", _figure("operations")),
    ("accesses checked", _figure("accesses_checked")),
    ("  not judged", _figure("unjudged")),
    ("guest faults", _figure("faults")),
    ("CR3 switches", _figure("switches")),
    ("edits of table words", _figure("edits")),
    ("shoot-downs acknowledged", _figure("shoot_downs")),
    ("tables that were data", _figure("table_reuses")),
    ("register writes", _figure("register_writes")),
    ("host operations", _figure("host_operations")),
    ("shadow pages synced", _number("syncs")),
    ("shadow pages zapped", _number("zaps")),
    ("remote flushes", _number("remote_flushes")),
    ("mmu_lock acquisitions", _number("lock_acquisitions")),
    ("  contended", _number("lock_contended")),
    ("  longest hold, ms", _hold),
    ("most tries of an access", _figure("max_tries")),
    ("  beyond the others' steps", _figure("max_retries")),
    ("audits", _number("audits")),
    ("compared with the model", _number("modelled")),
    ("violations", _number("finding_count")),
)


def _title(report: StressReport) -> str:
    return f"{report.plan.policy}, {report.plan.vcpus} vCPUs, seed {report.plan.seed}"


# Of _ROWS, for many runs.
_SHORT: Final = {
    "operations": "ops",
    "accesses checked": "checked",
    "shoot-downs acknowledged": "shoot-downs",
    "shadow pages synced": "syncs",
    "shadow pages zapped": "zaps",
    "audits": "audits",
    "  beyond the others' steps": "retries",
    "  longest hold, ms": "hold, ms",
    "violations": "wrong",
}


def print_stress(reports: Sequence[StressReport], console: Console) -> None:
    """Print one column for each run, or one row if there are many, then what was found."""
    if len(reports) <= _COLUMNS:
        table = Table(title="stress")
        table.add_column("")
        for report in reports:
            table.add_column(_title(report), justify="right")
        for name, figure in _ROWS:
            table.add_row(name, *map(figure, reports))
    else:
        table = Table(title=f"stress, {reports[0].plan.vcpus} vCPUs, seed {reports[0].plan.seed}")
        table.add_column("", no_wrap=True)
        shown = [(_SHORT[name], figure) for name, figure in _ROWS if name in _SHORT]
        for name, _ in shown:
            table.add_column(name, justify="right")
        for report in reports:
            table.add_row(str(report.plan.policy), *(figure(report) for _, figure in shown))
    console.print(table)
    for report in reports:
        if report.findings:
            console.print(f"{_title(report)}: {report.finding_count:,} violations", markup=False)
            for finding in report.findings[:_SHOWN]:
                console.print(f"  {finding}", markup=False, soft_wrap=True)


def stress_html(report: StressReport) -> str:
    """Return a report as an HTML table."""
    rows = [(name.strip(), figure(report)) for name, figure in _ROWS]
    rows += [("violation", str(finding)) for finding in report.findings[:_SHOWN]]
    return html_table(["stress", _title(report)], rows)
