"""``shadow-mmu contend``: workloads over policies, kinds of lock and numbers of vCPUs."""

import json
from pathlib import Path

import click

from shadow_mmu.cli.common import finish, json_option, policy_option, progress_bar, seed_option, typed_errors
from shadow_mmu.policy import Policy
from shadow_mmu.types import MAX_VCPUS

__all__ = ["contend"]

_WORKLOADS = ("kpti", "fork", "threads")


@click.command()
@click.option(
    "--workload",
    "workloads",
    multiple=True,
    type=click.Choice(_WORKLOADS),
    default=_WORKLOADS,
    show_default=True,
    help="What the guest does; may be given several times.",
)
@policy_option("locked", "seed", every_lock=True)
@click.option(
    "--vcpus",
    multiple=True,
    type=click.IntRange(1, MAX_VCPUS),
    default=(1, 2),
    show_default=True,
    help="Number of vCPUs, each a thread; may be given several times.",
)
@click.option(
    "--work",
    multiple=True,
    type=click.IntRange(0, 1_000_000),
    default=(0,),
    show_default=True,
    metavar="NS",
    help="Guest work between switches (g); may be given several times.",
)
@click.option(
    "--switches",
    type=click.IntRange(1, 10_000_000),
    default=10_000,
    show_default=True,
    help="CR3 writes of each vCPU in a sample, about.",
)
@click.option(
    "--seconds", type=float, help="Instead of --switches: how long a sample is under the slowest policy, about."
)
@click.option(
    "--repeat", type=click.IntRange(1, 1000), default=9, show_default=True, help="Samples of each combination."
)
@seed_option
@json_option
@click.option(
    "--plot", "plot_to", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Draw a .png or .svg."
)
@typed_errors
def contend(
    *,
    workloads: tuple[str, ...],
    policies: list[Policy],
    vcpus: tuple[int, ...],
    work: tuple[int, ...],
    switches: int,
    seconds: float | None,
    repeat: int,
    seed: int,
    as_json: bool,
    plot_to: Path | None,
) -> None:
    """Measure switches a second for each workload, policy, lock and number of vCPUs, and what the mmu_lock costs.

    Exit code 0: fine. 1: a row is void, because counts or accesses are not as they must be. 2: wrong usage. 130: interrupted;
    what was measured is printed.
    """
    from shadow_mmu.contend import measure, plots  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.contend.table import print_contention  # noqa: PLC0415  the same
    from shadow_mmu.tables import console  # noqa: PLC0415  the same

    if plot_to is not None:
        plots.check_target(plot_to)
    runs = measure.runs_of(*map(len, (workloads, policies, vcpus, work)), repeat=repeat)
    with progress_bar("contend", runs) as progress:
        report = measure.contend(
            workloads,
            policies,
            vcpus=vcpus,
            work=work,
            switches=switches,
            seconds=seconds,
            repeat=repeat,
            seed=seed,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_contention(report, console())
    if plot_to is not None and any(not row.void for row in report.rows):
        plots.plot(report, plot_to)
        click.echo(f"drawn to {plot_to}", err=True)
    finish(ok=report.ok, interrupted=report.interrupted)
