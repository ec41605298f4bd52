"""``shadow-mmu diff``: random operations on core and model."""

import hashlib
from pathlib import Path

import click

from shadow_mmu.cli.common import finish, progress_bar, seed_option, typed_errors


@click.command()
@click.option("--ops", type=click.IntRange(min=1), default=20_000, show_default=True, help="Operations to compare.")
@seed_option
@click.option(
    "--every", type=click.IntRange(min=1), default=1, show_default=True, help="Compare all state every N operations."
)
@click.option(
    "--save",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tests/regressions"),
    show_default=True,
    help="Where a shrunk divergence is written.",
)
@typed_errors
def diff(ops: int, seed: int, every: int, save: Path) -> None:
    """Run random operations on the core and on the model, and compare everything.

    Exit code 0: no divergence. 1: one was found; it is shrunk, printed and written as JSON. 2: wrong usage.
    """
    from shadow_mmu.differential import dump_stream, hunt  # noqa: PLC0415  --help needs no numpy

    with progress_bar("diff", ops) as progress:
        found = hunt(ops, seed=seed, every=every, progress=progress)
    if found is None:
        click.echo(f"{ops:,} operations from seed {seed}: no divergence")
        finish(ok=True)
    text = dump_stream(found.stream, str(found.divergence))
    save.mkdir(parents=True, exist_ok=True)
    path = save / f"{found.divergence.what}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.json"
    path.write_text(text + "\n")
    click.echo(f"{found}\nwritten to {path}")
    finish(ok=False)
