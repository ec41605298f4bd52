"""The contention table, one line a row."""

from typing import TYPE_CHECKING

from rich.box import HORIZONTALS
from rich.table import Table

from shadow_mmu.contend.report import rate
from shadow_mmu.text import html_table

if TYPE_CHECKING:
    from rich.console import Console

    from shadow_mmu.contend.report import ContentionReport, ContentionRow

_COLUMNS = (
    ("", "left"),
    ("policy", "left"),
    ("lock", "left"),
    ("a second (best)", "right"),
    ("x locked", "right"),
    ("locks", "right"),
    ("waited", "right"),
    ("wait p50/p99/max", "right"),
    ("hold p50/p99", "right"),
)


def _times(*nanoseconds: int) -> str:
    return "/".join(f"{one}" if one < 1000 else rate(one).replace(" ", "") for one in nanoseconds)


def _ratio(report: "ContentionReport", row: "ContentionRow") -> str:
    ratio = report.ratio(row)
    if ratio is None:
        return "noisy" if row.noisy else "-"
    return f"{ratio:.2f}x" if ratio < 10 else f"{ratio:.1f}x"


def _cells(report: "ContentionReport", row: "ContentionRow", group: str) -> list[str]:
    return [
        group,
        row.label,
        row.policy.lock,
        "void" if row.void else f"{rate(row.median)} ({rate(row.best)})",
        _ratio(report, row),
        f"{row.acquisitions_per_switch:.2f}",
        f"{100 * row.contended_share:.1f} %",
        "-" if row.wait_ns is None else _times(row.wait_ns.p50, row.wait_ns.p99, row.wait_ns.max),
        "-" if row.hold_ns is None else _times(row.hold_ns.p50, row.hold_ns.p99),
    ]


def _groups(report: "ContentionReport") -> list[str]:
    return [f"{row.workload}, {row.vcpus} vCPU{'s' if row.vcpus > 1 else ''}, g {row.work:,}" for row in report.rows]


def contention_html(report: "ContentionReport") -> str:
    """Return the same table as HTML, for a notebook."""
    rows = [_cells(report, row, group) for group, row in zip(_groups(report), report.rows, strict=True)]
    return html_table([name for name, _ in _COLUMNS], rows)


def contention_table(report: "ContentionReport") -> Table:
    """Return the table of a report, a block for each workload, number of vCPUs and amount of work.

    ``locks`` are acquisitions of the mmu_lock for each switch, ``waited`` is the share of them that had to; times are in
    nanoseconds.
    """
    table = Table(box=HORIZONTALS, collapse_padding=True, pad_edge=False)
    for name, side in _COLUMNS:
        table.add_column(name, justify="left" if side == "left" else "right", no_wrap=True)
    before = ""
    for group, row in zip(_groups(report), report.rows, strict=True):
        if before and before != group:
            table.add_section()
        table.add_row(*_cells(report, row, "" if group == before else group))
        before = group
    return table


def print_contention(report: "ContentionReport", out: "Console") -> None:
    """Print the table, how to read it, and why a row is void."""
    if report.rows:
        out.print(contention_table(report))
        out.print(
            f"CR3 switches a second of all vCPUs together: medians of {report.repeat} samples that nothing disturbed, "
            f"policies and locks in turns (A B B A), on {report.cpus} CPUs; more vCPUs than that measure the scheduler too. "
            "g: ns of guest work after each switch; a real VM exit is g >= 1,000. locks: acquisitions of the mmu_lock a switch; "
            "waited: share of them that had to. Wait and hold in ns, timed in a run of their own, some 30 ns of them the clock's."
        )
    for row in report.rows:
        for reason in row.void:
            out.print(f"void: {row.workload}, {row.policy}, {row.vcpus} vCPUs, g = {row.work}: {reason}", markup=False)
