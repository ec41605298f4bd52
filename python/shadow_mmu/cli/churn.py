"""``shadow-mmu run fork`` and ``shadow-mmu run threads``."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from shadow_mmu.cli.common import finish, json_option, policy_option, progress_bar, seed_option, typed_errors
from shadow_mmu.policy import Policy

if TYPE_CHECKING:
    from shadow_mmu.workloads.churn import ChurnName

__all__ = ["fork", "threads"]

_COMMON: tuple[Callable[..., Any], ...] = (
    click.option("--vcpus", type=click.IntRange(1, 1024), default=2, show_default=True, help="vCPUs, each a thread."),
    policy_option("locked", "seed"),
    seed_option,
    click.option(
        "--lock-times/--no-lock-times", default=True, show_default=True, help="Measure waiting for the mmu_lock."
    ),
    json_option,
)


def _whole(name: str, default: int, text: str) -> Callable[..., Any]:
    # The workload knows the upper limits, and names them.
    return click.option(f"--{name}", type=int, default=default, show_default=True, help=text)


def _number(name: str, default: float, text: str) -> Callable[..., Any]:
    return click.option(f"--{name}", type=float, default=default, show_default=True, help=text)


def _options(*own: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed((*own, *_COMMON)):
            command = option(command)
        return command

    return decorate


def _run(name: "ChurnName", policies: list[Policy], *, as_json: bool, **options: Any) -> None:  # noqa: ANN401  options
    from shadow_mmu.tables import console, print_churn  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.workloads.churn import run_churn  # noqa: PLC0415  the same

    with progress_bar(name, 1000) as progress:
        report = run_churn(name, policies, progress=progress, **options)
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_churn(report, console())
    finish(ok=report.ok, interrupted=report.interrupted)


@click.command()
@_options(
    _whole("forks", 200, "Forks on each vCPU."),
    _whole("pages", 48, "Data pages of a process, copied on write."),
    _whole("child-writes", 6, "Pages that a child writes, and writes again after exec."),
    _whole("parent-writes", 3, "Pages that its parent writes meanwhile, and after it."),
    _number("execs", 0.5, "Share of the children that exec."),
    _whole("depth", 2, "Generations of children."),
    _whole("syscalls", 2, "System calls of a child that touch no table."),
)
@typed_errors
def fork(**options: Any) -> None:  # noqa: ANN401  click's own
    """Fork, copy on write, exec and exit, a process tree on each vCPU; every access is checked.

    Exit code 0: fine. 1: an access came out wrong or an invariant is violated. 2: wrong usage. 130: interrupted; the policies
    that were finished are printed.
    """
    _run("fork", **options)


@click.command()
@_options(
    _whole(
        "cycles", 500, "On each vCPU: a mapping made, touched and taken away, and what the others signalled handled."
    ),
    _whole("pages", 4, "Pages of a mapping."),
    _whole("stack", 4, "Pages of a stack."),
    _whole("shared", 8, "Pages that all threads read and that move."),
    _number("moves", 0.25, "Moved pages a cycle on average."),
    _whole("lifetime", 8, "Cycles after which a thread exits and another starts."),
    _whole("syscalls", 2, "System calls of each cycle that touch no table."),
)
@typed_errors
def threads(**options: Any) -> None:  # noqa: ANN401  click's own
    """Map, touch and unmap memory on threads of one process, with shoot-downs; every access is checked.

    Exit code 0: fine. 1: an access came out wrong or an invariant is violated. 2: wrong usage. 130: interrupted; the policies
    that were finished are printed.
    """
    _run("threads", **options)
