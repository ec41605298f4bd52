"""The tables that the command line prints: one column a policy, one row a figure."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.table import Table

from shadow_mmu.report import INVLPG_NOTE, ReplayReport, ReplayResult
from shadow_mmu.text import html_table, html_text

if TYPE_CHECKING:
    from shadow_mmu.stats import LockStats, LongestUse, Quantiles
    from shadow_mmu.workloads.churn import ChurnReport
    from shadow_mmu.workloads.runner import KptiReport, KptiResult

_SHOWN: Final = 20
# Where the output is no terminal rich would fold the table at 80 columns.
_PLAIN_WIDTH: Final = 120


def console(*, stderr: bool = False) -> Console:
    """Return where to print: as wide as the terminal, or wide enough for a table where there is none."""
    found = Console(stderr=stderr, highlight=False)
    return found if found.is_terminal else Console(stderr=stderr, highlight=False, width=_PLAIN_WIDTH)


def _percent(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if whole else f"{part:,}"


def _times(found: "Quantiles | None") -> str:
    return "-" if found is None else f"{found.p50:,} / {found.p99:,} / {found.max:,}"


def _longest(found: "LongestUse | None") -> str:
    if found is None:
        return "-"
    return f"{found.ns:,} ({'host' if found.vcpu is None else f'vCPU {found.vcpu}'}, {found.reason})"


def _locks(lock: "LockStats", reason: str) -> str:
    return f"{lock.acquisitions[reason]:,}"


def _counter(*names: str) -> Callable[[ReplayResult], str]:
    return lambda result: " / ".join(f"{result.stats.counters[name]:,}" for name in names)


def _reason(name: str) -> Callable[[ReplayResult], str]:
    return lambda result: _locks(result.stats.lock, name)


def _other_values(result: ReplayResult) -> int:
    return result.stats.cr3.writes - result.stats.cr3.same


_REPLAY_ROWS: Final[Sequence[tuple[str, Callable[[ReplayResult], str]] | None]] = (
    ("CR3 writes (after each vCPU's first)", lambda r: f"{r.stats.cr3.writes:,}"),
    ("  same value (of these under the lock)", lambda r: f"{r.stats.cr3.same:,} ({r.stats.cr3.same_locked:,})"),
    ("  lock-free", lambda r: _percent(r.stats.cr3.lockless, _other_values(r))),
    ("  under the lock: no cached root", lambda r: _percent(r.stats.cr3.locked_miss, _other_values(r))),
    ("  under the lock: root had to sync", lambda r: _percent(r.stats.cr3.locked_unsync, _other_values(r))),
    ("CR3 write ns p50 / p99 / max", lambda r: _times(r.stats.cr3_write_ns)),
    None,
    ("mmu_lock acquisitions", lambda r: f"{r.stats.lock.total:,}"),
    *((f"  {name}", _reason(name)) for name in ("load", "free", "sync", "fault", "pte_write", "invlpg", "zap", "host", "audit")),
    ("  shared / contended", lambda r: f"{r.stats.lock.shared:,} / {r.stats.lock.contended:,}"),
    ("  wait ns p50 / p99 / max", lambda r: _times(r.stats.lock.wait_ns)),
    ("  hold ns p50 / p99 / max", lambda r: _times(r.stats.lock.hold_ns)),
    ("  longest wait ns", lambda r: _longest(r.stats.lock.longest_wait)),
    ("  longest hold ns", lambda r: _longest(r.stats.lock.longest_hold)),
    None,
    ("page faults fixed / spurious / write-protected", _counter("pf_fixed", "pf_spurious", "pf_emulate")),
    ("shadow pages created / zapped", _counter("mmu_cache_miss", "mmu_shadow_zapped")),
    ("shadow pages live / peak", lambda r: f"{r.stats.shadow_pages_live:,} / {r.stats.shadow_pages_peak:,}"),
    ("unsync marks (pages unsync now)", lambda r: f"{r.stats.unsync_marks:,} ({r.stats.counters['mmu_unsync']:,})"),
    ("page syncs (that changed no entry)", lambda r: f"{r.stats.sync_pages:,} ({r.stats.sync_pages_unchanged:,})"),
    ("TLB flushes local / remote asked for", lambda r: f"{r.stats.tlb_full_flushes:,} / {r.stats.counters['remote_tlb_flush_requests']:,}"),
    ("shadow memory at most, KiB", lambda r: f"{r.stats.shadow_bytes_peak >> 10:,}"),
    None,
    ("seconds", lambda r: f"{r.seconds:.3f}"),
    ("operations at once, at most", lambda r: f"{r.max_parallel}"),
    ("accesses checked", lambda r: f"{r.accesses_checked:,}"),
    ("page-table stores checked", lambda r: f"{r.stores_checked:,}"),
    ("mismatches", lambda r: f"{r.mismatch_count:,}"),
    ("legally stale", lambda r: f"{len(r.stale_legal):,}"),
    ("guest faults", lambda r: f"{r.guest_faults:,}"),
    ("violated invariants (audits)", lambda r: f"{len(r.violations):,} ({r.audits:,})"),
)  # fmt: skip


def replay_html(report: ReplayReport) -> str:
    """Return the table of a replay as HTML, and what differed, for a notebook."""
    rows = ((row[0].strip(), *(row[1](result) for result in report.results)) for row in _REPLAY_ROWS if row)
    parts = [html_text(_replay_title(report)), html_table(["", *(str(one.policy) for one in report.results)], rows)]
    return "".join([*parts, *(html_text(line) for result in report.results for line in _remarks(report, result))])


def _replay_title(report: ReplayReport) -> str:
    return f"{report.recording}: {report.events:,} events"


def _remarks(report: ReplayReport, result: ReplayResult) -> Iterator[str]:
    """Yield what differed, and whether it was interrupted."""
    for title, found, count in (
        ("mismatch", result.mismatches, result.mismatch_count),
        ("legally stale", result.stale_legal, len(result.stale_legal)),
        ("violation", result.violations, len(result.violations)),
    ):
        for one in found[:_SHOWN]:
            yield f"{result.policy}: {title}: {one}"
        if count > _SHOWN:
            yield f"{result.policy}: {title}: {count - _SHOWN:,} more"
    if result.interrupted:
        yield f"{result.policy}: interrupted after {result.events_done:,} of {report.events:,} events"


def replay_table(report: ReplayReport) -> Table:
    """Return the table of a replay."""
    table = Table()
    table.add_column("")
    for result in report.results:
        table.add_column(f"{result.policy}", justify="right", overflow="fold")
    for row in _REPLAY_ROWS:
        if row is None:
            table.add_section()
        else:
            table.add_row(row[0], *(row[1](result) for result in report.results))
    return table


def print_replay(report: ReplayReport, out: Console) -> None:
    """Print the table, what differed, and what to know about it."""
    if report.results:
        first = report.results[0]
        out.print(_replay_title(report), markup=False)
        out.print(replay_table(report))
        out.print(f"mode {first.mode}, model {first.model}. {INVLPG_NOTE}")
    for result in report.results:
        for line in _remarks(report, result):
            out.print(line, markup=False)


_KPTI_ROWS: Final[Sequence[tuple[str, Callable[["KptiResult"], str]]]] = (
    ("switches / s", lambda r: f"{r.switches_per_second:,.0f}"),
    ("seconds", lambda r: f"{r.seconds:.3f}"),
    ("CR3 writes lock-free", lambda r: _percent(r.stats.cr3.lockless, r.stats.cr3.writes - r.stats.cr3.same)),
    ("mmu_lock acquisitions", lambda r: f"{r.stats.lock.total:,}"),
    ("  load / free / sync", lambda r: " / ".join(_locks(r.stats.lock, name) for name in ("load", "free", "sync"))),
    ("  fault / pte_write / invlpg", lambda r: " / ".join(_locks(r.stats.lock, name) for name in ("fault", "pte_write", "invlpg"))),
    ("  host", lambda r: _locks(r.stats.lock, "host")),
    ("  shared / contended", lambda r: f"{r.stats.lock.shared:,} / {r.stats.lock.contended:,}"),
    ("  wait ns p50 / p99 / max", lambda r: _times(r.stats.lock.wait_ns)),
    ("  hold ns p50 / p99 / max", lambda r: _times(r.stats.lock.hold_ns)),
    ("  longest wait ns", lambda r: _longest(r.stats.lock.longest_wait)),
    ("  longest hold ns", lambda r: _longest(r.stats.lock.longest_hold)),
    ("  wait ns in all", lambda r: "-" if r.stats.lock.wait_ns is None else f"{r.stats.lock.wait_ns.total or 0:,}"),
    ("page faults", lambda r: f"{r.stats.counters['pf_taken']:,}"),
    ("shadow pages created", lambda r: f"{r.stats.counters['mmu_cache_miss']:,}"),
    ("violated invariants", lambda r: f"{len(r.violations):,}"),
)  # fmt: skip


def _kpti_title(report: "KptiReport") -> str:
    return (
        f"KPTI ping-pong: {report.vcpus} vCPUs, {report.processes} process{'es' if report.processes > 1 else ''} each, "
        f"{report.switches:,} switches each, {report.edits:g} table edits a switch, seed {report.seed}"
    )


def _churn_title(report: "ChurnReport") -> str:
    rates = "".join(f", {name.replace('_', ' ')} {value:,g}" for name, value in report.rates)
    return (
        f"{report.workload}: {report.vcpus} vCPUs{rates}, seed {report.seed}: {report.switches:,} switches, "
        f"{report.meant_faults:,} faults that are meant, in all"
    )


def kpti_html(report: "KptiReport") -> str:
    """Return the table of a KPTI run as HTML, for a notebook."""
    return _html_of_runs(_kpti_title(report), report.results)


def churn_html(report: "ChurnReport") -> str:
    """Return the table of fork churn or thread churn as HTML, for a notebook."""
    return _html_of_runs(_churn_title(report), report.results)


def _html_of_runs(title: str, results: "Sequence[KptiResult]") -> str:
    rows = ((name.strip(), *(show(result) for result in results)) for name, show in _KPTI_ROWS)
    table = html_table(["", *(str(result.policy) for result in results)], rows)
    return "".join([html_text(title), table, *map(html_text, _violations(results))])


def _violations(results: "Sequence[KptiResult]") -> list[str]:
    return [f"{one.policy}: violation: {text}" for one in results for text in one.violations[:_SHOWN]]


def print_kpti(report: "KptiReport", out: Console) -> None:
    """Print the table of a KPTI run."""
    _print_runs(_kpti_title(report), report.results, out)


def print_churn(report: "ChurnReport", out: Console) -> None:
    """Print the table of fork churn or thread churn."""
    _print_runs(_churn_title(report), report.results, out)


def _print_runs(title: str, results: "Sequence[KptiResult]", out: Console) -> None:
    table = Table()
    table.add_column("")
    for result in results:
        table.add_column(f"{result.policy}", justify="right", overflow="fold")
    for name, show in _KPTI_ROWS:
        table.add_row(name, *(show(result) for result in results))
    out.print(title)
    out.print(table)
    for line in _violations(results):
        out.print(line, markup=False)
