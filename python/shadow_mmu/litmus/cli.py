"""``shadow-mmu litmus``: the weak-memory explorer on the command line.

Exit codes of ``run``: 0 the forbidden outcome is impossible; 1 it is possible; 2 wrong usage.
"""

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import click

from shadow_mmu.errors import ShadowMmuError

if TYPE_CHECKING:
    from shadow_mmu.litmus.timeline import Timeline

__all__ = ["litmus"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_BAD, _REFUSED = 1, 2


class _Refused(click.ClickException):
    exit_code = _REFUSED


def _typed_errors(command: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn a typed error into its text on stderr and exit code 2."""

    @wraps(command)
    def wrapped(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return command(*args, **kwargs)
        except ShadowMmuError as error:
            raise _Refused(str(error)) from error

    return wrapped


@click.group()
def litmus() -> None:
    """Explore the lock-free protocols and the textbook tests under SC, TSO and RC11."""


@litmus.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON array instead of a table.")
def list_tests(*, as_json: bool) -> None:
    """List the tests and their weakenings."""
    from shadow_mmu.litmus.catalogue import CATALOGUE  # noqa: PLC0415  --help needs none of it
    from shadow_mmu.litmus.models import MODELS  # noqa: PLC0415  the same
    from shadow_mmu.litmus.render import print_catalogue  # noqa: PLC0415  the same
    from shadow_mmu.tables import console  # noqa: PLC0415  the same

    if not as_json:
        print_catalogue(list(CATALOGUE.values()), console())
        return
    listed = [
        {
            "name": test.name,
            "short": test.short,
            "family": test.family,
            "title": test.title,
            "forbidden": test.forbids,
            "models": list(MODELS),
            "knobs": test.choices_by_knob(),
            "cases": [{"weaken": case.setting, "title": case.title} for case in test.cases],
        }
        for test in CATALOGUE.values()
    ]
    click.echo(json.dumps(listed))


@litmus.command("run")
@click.argument("name")
@click.option(
    "--weaken",
    default="",
    metavar="X",
    help="A weakening of the list, or any setting of the knobs: 'O_SPTE=RLX MUT_X'.",
)
@click.option(
    "--model",
    "model_name",
    default="rc11",
    show_default=True,
    metavar="MODEL",
    help="The memory model: sc, tso or rc11.",
)
@click.option(
    "--svg", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw the bad execution into FILE."
)
@click.option("--export", type=click.Choice(["herd"]), help="Print the test for another tool, and do not run it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")
@_typed_errors
def run_test(name: str, *, weaken: str, model_name: str, svg: Path | None, export: str | None, as_json: bool) -> None:
    """Explore the test NAME: can its forbidden outcome happen? If it can, show how, the CPUs as columns.

    Exit code 0: it cannot. 1: it can. 2: wrong usage.
    """
    from shadow_mmu.litmus.catalogue import find  # noqa: PLC0415  --help needs none of it
    from shadow_mmu.litmus.models import model  # noqa: PLC0415  the same

    test = find(name)
    rules = model(model_name)
    program = test.program(weaken)
    if export is not None:
        from shadow_mmu.litmus.herd import export as to_herd  # noqa: PLC0415  the same

        click.echo(to_herd(f"{test.name} {weaken}", program), nl=False)
        return
    from shadow_mmu.litmus.verdict import judge  # noqa: PLC0415  the same

    verdict = judge(test.name, weaken, program, rules)
    if as_json:
        click.echo(json.dumps(verdict.as_dict()))
    else:
        from shadow_mmu.litmus.render import print_verdict  # noqa: PLC0415  the same
        from shadow_mmu.tables import console  # noqa: PLC0415  the same

        print_verdict(test, verdict, console())
    if svg is not None:
        _draw(svg, f"{test.name} {weaken} under {rules.title}", verdict.timeline)
    sys.exit(0 if verdict.ok else _BAD)


def _draw(path: Path, title: str, timeline: "Timeline | None") -> None:
    from shadow_mmu.litmus.svg import draw  # noqa: PLC0415  --help needs none of it

    if timeline is None:
        click.echo(f"there is no bad execution to draw: {path} is not written", err=True)
        return
    try:
        path.write_text(draw(title, timeline), encoding="utf-8")
    except OSError as error:
        raise _Refused(f"cannot write {path}: {error.strerror}") from error
    click.echo(f"drawn to {path}", err=True)
