"""``shadow-mmu run``: workloads on OS threads, under one policy after another."""

import json

import click

from shadow_mmu.cli.churn import fork, threads
from shadow_mmu.cli.common import finish, json_option, policy_option, progress_bar, rate, seed_option, typed_errors
from shadow_mmu.policy import Policy


@click.group()
def run() -> None:
    """Run a workload on OS threads, one for each vCPU."""


for command in (fork, threads):
    run.add_command(command)


@run.command()
@click.option("--vcpus", type=click.IntRange(1, 1024), default=2, show_default=True, help="vCPUs, each a thread.")
@click.option("--processes", type=click.IntRange(1, 1024), default=1, show_default=True, help="Processes of each vCPU.")
@click.option(
    "--switches", type=click.IntRange(min=1), default=100_000, show_default=True, help="CR3 writes of each vCPU."
)
@click.option(
    "--edits",
    type=float,
    callback=rate,
    default=0.0,
    show_default=True,
    help="Page-table edits for each switch on average.",
)
@policy_option("locked", "seed")
@seed_option
@click.option("--lock-times/--no-lock-times", default=True, show_default=True, help="Measure waiting for the mmu_lock.")
@json_option
@typed_errors
def kpti(
    *,
    vcpus: int,
    processes: int,
    switches: int,
    edits: float,
    policies: list[Policy],
    seed: int,
    lock_times: bool,
    as_json: bool,
) -> None:
    """Ping-pong between the kernel's and the user's CR3 of KPTI processes.

    Exit code 0: fine. 1: a guest fault or a violated invariant. 2: wrong usage. 130: interrupted; the policies that were
    finished are printed.
    """
    from shadow_mmu.tables import console, print_kpti  # noqa: PLC0415  --help needs no numpy
    from shadow_mmu.workloads.runner import run_kpti  # noqa: PLC0415  the same

    with progress_bar("kpti", round(vcpus * switches * (2 + 3 * edits)) * len(policies)) as progress:
        report = run_kpti(
            policies,
            vcpus=vcpus,
            processes=processes,
            switches=switches,
            edits=edits,
            seed=seed,
            lock_times=lock_times,
            progress=progress,
        )
    if as_json:
        click.echo(json.dumps(report.as_dict()))
    else:
        print_kpti(report, console())
    finish(ok=report.ok, interrupted=report.interrupted)
