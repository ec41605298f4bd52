"""The command line: one module a command. What they share, exit codes too, is in :mod:`shadow_mmu.cli.common`."""

import click

from shadow_mmu.cli.contend import contend
from shadow_mmu.cli.diff import diff
from shadow_mmu.cli.dumps import maps, walk
from shadow_mmu.cli.replay import replay
from shadow_mmu.cli.run import run
from shadow_mmu.cli.stress import stress
from shadow_mmu.litmus.cli import litmus


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="shadow-mmu", prog_name="shadow-mmu")
def main() -> None:
    """KVM's x86 shadow MMU as a library: replay real guests, run workloads, compare core and model, read dumps."""


for command in (replay, run, contend, stress, diff, litmus, maps, walk):
    main.add_command(command)
