"""Put the figures of a bench run where the documents show them.

``python -m benches.publish FOLDER README.md docs/performance.md`` replaces what is between the marks of a table,
``<!-- NAME output: begin -->`` and ``<!-- NAME output: end -->``, with the table made from what the benches left in the
folder. The names are those of ``TABLES``; a mark of another name, such as the demo's, is left alone.
"""

import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benches.table import HEAD, Results, all_rows, cells, rate, times

MARK = re.compile(r"(<!-- (?P<name>[a-z ]+) output: begin -->\n).*?(<!-- (?P=name) output: end -->)", re.DOTALL)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def ratio(found: dict[str, Any]) -> str:
    return times(found["ratio"]) if found["ratio"] else "noisy"


def every_row(results: Results) -> str:
    """All rows but those of vCPU threads, which have tables of their own."""
    own = ("2 ", "3 ", "6 six")
    return markdown(HEAD, [cells(row) for row in all_rows(results) if not row.name.startswith(own)])


def contest(found: dict[str, Any]) -> str:
    """Fast and locked, median (best), and the ratio of the medians."""
    return f"{rate(found['fast'])} / {rate(found['locked'])} **{ratio(found)}**"


def by_work(results: Results, *, headline: bool) -> str:
    """Fast against locked: a line for each lock, roots and number of vCPUs, a column for each g."""
    lines: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for found in results.contention.get("contention", []):
        if not headline or (found["roots"], found["vcpus"]) == ("own", 2):
            lines.setdefault((found["lock"], found["roots"], found["vcpus"]), []).append(found)
    works = dict.fromkeys(one["work_ns"] for line in lines.values() for one in line)
    head = ["lock", "roots", "vCPUs", "held ns", "waited ns", *(f"g = {work} ns" for work in works)]
    rows = [
        [lock, roots, f"{vcpus}", f"{line[0]['hold_ns']}", f"{line[0]['wait_ns']}", *map(contest, line)]
        for (lock, roots, vcpus), line in lines.items()
    ]
    if headline:
        # Two vCPUs with roots of their own, all of them.
        head, *rows = ([row[0], *row[3:]] for row in (head, *rows))
    return markdown(head, rows)


def scaling(results: Results) -> str:
    """Two vCPUs over one, own roots, no work."""
    rows = [
        [found["case"], rate(found["one"]), rate(found["two"]), f"**{ratio(found)}**"]
        for found in results.contention.get("scaling", [])
    ]
    return markdown(["", "one vCPU", "two vCPUs", "ratio"], rows)


def round_robin(results: Results) -> str:
    """Six CR3s in turn: a line for each number of vCPUs and g, a column for each cache."""
    lines: dict[tuple[int, int], dict[str, dict[str, Any]]] = {}
    for found in results.contention.get("round_robin", []):
        lines.setdefault((found["vcpus"], found["work_ns"]), {})[found["policy"]] = found
    rows = [
        [f"{vcpus}", f"{work}"]
        + [rate(line[policy]["small"]) for policy in ("lru:1", "lru:3")]
        + [rate(line["lru:3"]["large"]), f"**{ratio(line['lru:3'])}**"]
        for (vcpus, work), line in lines.items()
    ]
    return markdown(["vCPUs", "g ns", "lru:1", "lru:3", "lru:8", "lru:8 over lru:3"], rows)


TABLES: dict[str, Callable[[Results], str]] = {
    "bench": every_row,
    "contention": partial(by_work, headline=False),
    "contention headline": partial(by_work, headline=True),
    "scaling": scaling,
    "round robin": round_robin,
}


def published(text: str, results: Results) -> str:
    """Replace the tables of a text."""

    def table(mark: re.Match[str]) -> str:
        make = TABLES.get(mark["name"])
        return mark[0] if make is None else f"{mark[1]}{make(results)}{mark[3]}"

    return MARK.sub(table, text)


def main(folder: Path, documents: list[Path]) -> int:
    """Replace the tables of documents; 1 if there is nothing to put there."""
    results = Results(folder)
    rows = all_rows(results)
    if any("void" in row.ours for row in rows):
        print(f"{folder} has void rows: nothing is published", file=sys.stderr)
        return 1
    for document in documents:
        document.write_text(published(document.read_text(), results))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), [Path(one) for one in sys.argv[2:]]))
