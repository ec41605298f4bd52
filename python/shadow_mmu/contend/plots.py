"""The plot of a contention report, as PNG or SVG: rates on a logarithmic axis, a panel for each workload and amount of work.

matplotlib draws it, and comes with the extra ``plot``.
"""

import importlib
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

from shadow_mmu.contend.report import rate
from shadow_mmu.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from shadow_mmu.contend.report import ContentionReport, ContentionRow

SUFFIXES: Final = (".png", ".svg")
_TITLES: Final = {"kpti": "KPTI ping-pong", "fork": "fork churn", "threads": "thread churn"}
# Okabe and Ito's palette: told apart by everybody, and in print.
_COLOURS: Final = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
_MARKERS: Final = ("o", "s", "^", "D", "v")
_DASHES: Final = ("-", "--", "-.", ":", (0, (4, 1, 1, 1, 1, 1)))
_DPI: Final = 150
_LABELLED_BARS: Final = 15


def check_target(path: Path) -> None:
    """Tell whether a plot can be drawn into a file, before anything is measured.

    Raises
    ------
    ConfigError
        The suffix is no format, or there is no such folder.
    MissingExtraError
        matplotlib is not installed.

    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"{str(path)!r} ends in {path.suffix!r}: expected {' or '.join(SUFFIXES)}")
    if not path.resolve().parent.is_dir():
        raise ConfigError(f"{str(path)!r}: expected a file in a folder that is there")
    try:
        importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise MissingExtraError("a plot", "matplotlib", "plot") from error


def plot(report: "ContentionReport", path: Path) -> None:
    """Draw a report into a file; void rows are left out.

    With several numbers of vCPUs: lines over them, a colour a policy, a marker and a dash a lock, hollow if a row is noisy. With
    one: bars, a group a lock, hatched if noisy.

    Raises
    ------
    ConfigError
        The suffix is no format, the file cannot be written, or there is no row to draw.
    MissingExtraError
        matplotlib is not installed.

    """
    check_target(path)
    if not any(not row.void for row in report.rows):
        raise ConfigError("no row to draw: expected one at least that is not void")
    import matplotlib as mpl  # noqa: PLC0415  an extra

    # Letters stay letters, and the same report gives the same file: it may be checked in.
    metadata = {"Date": None} if path.suffix.lower() == ".svg" else None
    try:
        with mpl.rc_context():
            mpl.rc("svg", fonttype="none", hashsalt="shadow-mmu")
            draw(report).savefig(path, dpi=_DPI, metadata=metadata)
    except OSError as error:
        raise ConfigError(f"cannot write {path}: {error.strerror}") from error


def draw(report: "ContentionReport") -> "Figure":
    """Return the figure of a report that has a row to draw."""
    from matplotlib.figure import Figure  # noqa: PLC0415  an extra

    rows = [row for row in report.rows if not row.void]
    workloads = list(dict.fromkeys(row.workload for row in rows))
    works = sorted({row.work for row in rows})
    lines = len({row.vcpus for row in rows}) > 1
    locks = len({row.policy.lock for row in rows})
    width = 4.2 if lines else max(4.2, 1.6 + 0.9 * locks)
    # Workloads below each other, amounts of work side by side; of one amount the workloads are.
    cells = [(workload, work) for workload in workloads for work in works]
    down, across = (1, len(cells)) if len(works) == 1 else (len(workloads), len(works))
    # No pyplot: a figure of one's own needs no window system and leaves no state behind.
    figure = Figure(figsize=(1.3 + width * across, 0.7 + 3.2 * down), layout="constrained")
    for (workload, work), panel in zip(cells, figure.subplots(down, across, squeeze=False).flat, strict=True):
        shown = [row for row in rows if (row.workload, row.work) == (workload, work)]
        panel.set_yscale("linear" if _narrow(shown, times=4 if lines else 20) else "log")
        (_lines if lines else _bars)(panel, shown, rows)
        panel.set_title(f"{_TITLES[workload]}, g = {work:,} ns", fontsize=10)
        panel.set_ylabel("CR3 switches / s", fontsize=9)
        panel.yaxis.set_major_formatter(_short)
        panel.yaxis.set_minor_formatter(_minor if lines and panel.get_yscale() == "log" and _narrow(shown) else "")
        panel.grid(axis="y", which="both", linewidth=0.4, alpha=0.4)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=8, which="both")
    _legend(figure, rows, lines=lines)
    left_out = len(report.rows) - len(rows)
    vcpus = "" if lines else f", {rows[0].vcpus} vCPUs"
    figure.suptitle(
        f"CR3 switches a second, all vCPUs together{vcpus}; median of {report.repeat}, {report.cpus} CPUs"
        + (f"; {left_out} void rows left out" if left_out else ""),
        fontsize=10,
    )
    return figure


def _narrow(rows: "list[ContentionRow]", *, times: int = 20) -> bool:
    """Tell whether rates span so little that a linear axis shows all, or that no power of ten may lie between them."""
    found = [row.median for row in rows if row.median]
    return not found or max(found) < times * min(found)


def _short(value: float, _position: int | None = None) -> str:
    """Write an axis label: 2M, 500k."""
    for unit, scale in (("M", 1e6), ("k", 1e3)):
        if value >= scale:
            return f"{value / scale:g}{unit}"
    return f"{value:g}"


def _minor(value: float, _position: int | None = None) -> str:
    """Write 2 and 5 of each power of ten only."""
    return _short(value) if value > 0 and f"{value:.0e}"[0] in "25" else ""


def _order(rows: "list[ContentionRow]") -> tuple[list[str], list[str]]:
    """Return policies and locks as they first come."""
    return list(dict.fromkeys(row.label for row in rows)), list(dict.fromkeys(row.policy.lock for row in rows))


def _lines(panel: "Axes", rows: "list[ContentionRow]", every: "list[ContentionRow]") -> None:
    """Draw rates over the number of vCPUs, a line for each policy and lock, a dot for each median."""
    policies, locks = _order(every)
    vcpus = sorted({row.vcpus for row in every})
    for p, policy in enumerate(policies):
        for n, lock in enumerate(locks):
            mine = sorted(
                (row for row in rows if (row.label, row.policy.lock) == (policy, lock)), key=lambda row: row.vcpus
            )
            panel.plot(
                # Side by side, so that locks that are equally fast do not hide each other.
                [vcpus.index(row.vcpus) + 0.05 * (n - (len(locks) - 1) / 2) for row in mine],
                [row.median for row in mine],
                color=_COLOURS[p % len(_COLOURS)],
                linestyle=_DASHES[n % len(_DASHES)],
                marker=_MARKERS[n % len(_MARKERS)],
                markersize=4.5,
                linewidth=1.2,
                markerfacecolor="white" if any(row.noisy for row in mine) else None,
            )
    panel.set_xticks(range(len(vcpus)), [f"{count}" for count in vcpus])
    panel.set_xlim(-0.4, len(vcpus) - 0.6)
    panel.set_xlabel("vCPUs", fontsize=9)


def _bars(panel: "Axes", rows: "list[ContentionRow]", every: "list[ContentionRow]") -> None:
    """Draw a group of bars for each lock, a bar for each policy; the rate stands on it where there is room."""
    policies, locks = _order(every)
    wide = 0.8 / len(policies)
    for p, policy in enumerate(policies):
        mine = [row for row in rows if row.label == policy]
        places = [locks.index(row.policy.lock) + wide * (p - (len(policies) - 1) / 2) for row in mine]
        bars = panel.bar(places, [row.median for row in mine], 0.92 * wide, color=_COLOURS[p % len(_COLOURS)])
        for bar, row in zip(bars, mine, strict=True):
            bar.set(hatch="///" if row.noisy else None, edgecolor="white", linewidth=0)
        if len(rows) <= _LABELLED_BARS:
            panel.bar_label(bars, [rate(row.median).replace(" ", "") for row in mine], fontsize=6, padding=1)
    panel.set_xticks(range(len(locks)), locks)
    panel.margins(y=0.12)
    found = [row.median for row in rows if row.median]
    if panel.get_yscale() == "log" and found:
        # A bar on a logarithmic axis begins somewhere: at a power of ten, so that the eye can tell where.
        panel.set_ylim(bottom=10 ** math.floor(math.log10(min(found)) - 0.1))


def _legend(figure: "Figure", rows: "list[ContentionRow]", *, lines: bool) -> None:
    from matplotlib.lines import Line2D  # noqa: PLC0415  an extra
    from matplotlib.patches import Patch  # noqa: PLC0415  the same

    policies, locks = _order(rows)
    shown: list[Artist] = [Patch(color=_COLOURS[p % len(_COLOURS)], label=policy) for p, policy in enumerate(policies)]
    if lines:
        shown += [
            Line2D(
                [],
                [],
                color="0.3",
                linestyle=_DASHES[n % len(_DASHES)],
                marker=_MARKERS[n % len(_MARKERS)],
                markersize=4.5,
                linewidth=1.2,
                label=lock,
            )
            for n, lock in enumerate(locks)
        ]
    if any(row.noisy for row in rows):
        hollow = Line2D([], [], color="0.3", linestyle="", marker="o", markerfacecolor="white", label="noisy")
        shown.append(hollow if lines else Patch(facecolor="0.5", hatch="///", edgecolor="white", label="noisy"))
    figure.legend(handles=shown, loc="outside right center", fontsize=8, handlelength=3)
