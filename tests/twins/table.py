"""The table of the weakened twins: ``python tests/twins/table.py RESULTS...`` (``make twins``).

The model checkers leave one JSON line for each model they explored. This prints, for each twin that the sources name, in which
execution each checker caught it, and fails if one was caught by none or if there are fewer than 60.
"""

import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[2]
AT_LEAST = 60
_NAMED = re.compile(r'\bbreaks\(\s*"([^"]+)"')
_HOLDS = re.compile(r'\bholds(?:_within)?\((?:\s*\w+,)?\s*"([^"]+)"')


def sources() -> list[Path]:
    """Return the files of the models: the core's and the locks'."""
    found = [path for path in (ROOT / "rust").glob("*/src/**/*.rs") if "models" in path.with_suffix("").parts]
    assert found, f"no models under {ROOT / 'rust'}"
    return sorted(found)


def named(pattern: re.Pattern[str] = _NAMED) -> list[str]:
    """Return the names of the twins in the sources, each once."""
    return sorted({name for path in sources() for name in pattern.findall(path.read_text())})


def right_forms() -> list[str]:
    """Return the names of the models that hold."""
    return named(_HOLDS)


@dataclass(frozen=True)
class Result:
    """What a checker made of one model: it ``holds``, or a twin was ``caught``; after so many executions."""

    model: str
    kind: str
    tool: str
    executions: int
    seconds: float


def read(paths: Iterable[Path]) -> list[Result]:
    """Read result files; a line that is none ends the program."""
    results = []
    for path in paths:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            try:
                result = Result(**json.loads(line))
            except (ValueError, TypeError) as error:
                sys.exit(f"{path}:{number}: {line!r} is no result of a model: {error}")
            if result.kind not in {"holds", "caught"}:
                sys.exit(f"{path}:{number}: {result.kind!r} is no result: expected 'holds' or 'caught'")
            results.append(result)
    return results


def problems(results: list[Result], twins: list[str]) -> list[str]:
    """Return what is wrong: a twin that nobody caught, one that the sources do not know, too few in all."""
    caught = {result.model for result in results if result.kind == "caught"}
    found = [f"{name}: no checker caught it" for name in twins if name not in caught]
    found += [f"{name}: caught, but the sources name no such twin" for name in sorted(caught - set(twins))]
    if len(caught) < AT_LEAST:
        found.append(f"{len(caught)} twins were caught: expected at least {AT_LEAST}")
    return found


def table(results: list[Result], twins: list[str]) -> Table:
    """Return the table: a line for each twin, a column for each checker."""
    tools = sorted({result.tool for result in results})
    executions = {(result.model, result.tool): result.executions for result in results if result.kind == "caught"}
    shown = Table(title="weakened twins: caught in execution", title_justify="left")
    shown.add_column("twin")
    for tool in tools:
        shown.add_column(tool, justify="right")
    for name in twins:
        shown.add_row(name, *(f"{executions[name, tool]:,}" if (name, tool) in executions else "-" for tool in tools))
    return shown


def summary(results: list[Result]) -> list[str]:
    """Return one line for each checker."""
    lines = []
    for tool in sorted({result.tool for result in results}):
        mine = [result for result in results if result.tool == tool]
        holds = [result for result in mine if result.kind == "holds"]
        lines.append(
            f"{tool}: {sum(result.kind == 'caught' for result in mine)} twins caught; {len(holds)} models hold in all "
            f"{sum(result.executions for result in holds):,} executions; {sum(result.seconds for result in mine):.1f} s"
        )
    return lines


def main(arguments: list[str]) -> int:
    """Print the table; 1 if a twin survived."""
    if not arguments:
        sys.exit("give the result files that the model checkers left: expected at least one")
    paths = [Path(argument) for argument in arguments]
    missing = [path for path in paths if not path.is_file()]
    if missing:
        sys.exit(f"{missing[0]}: there is no such file; `make loom` and `make explore` leave them")
    results, twins = read(paths), named()
    console = Console()
    console.print(table(results, twins))
    for line in summary(results):
        console.print(line, highlight=False)
    wrong = problems(results, twins)
    for line in wrong:
        console.print(line, style="red", highlight=False)
    caught = {result.model for result in results if result.kind == "caught"}
    console.print(f"{len(caught & set(twins))} of {len(twins)} twins caught", highlight=False)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
