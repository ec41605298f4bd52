"""Scripts in processes of their own: what ends, forks or is interrupted must not be the process of the tests."""

import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]

PRELUDE = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(ROOT)!r})
"""
IMPORTS = """
import numpy as np
from shadow_mmu import ForkedError, Vm, ops
from tests.api.guest import DATA, GVA, SIZE, boot
from tests.lifecycle.work import BUSY, LONG, machine, usable
"""


@dataclass(frozen=True)
class Ended:
    """How a script ended."""

    code: int
    out: str
    err: str


def heed_ctrl_c() -> None:
    """Undo what a shell does to what it starts in the background: to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def script(code: str, *, before: str = "", limit: float = 60) -> Ended:
    """Run a script; one that is not done in ``limit`` seconds is a deadlock, and fails the test.

    ``before`` comes before the import of the package.
    """
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + dedent(before) + IMPORTS + dedent(code)],
        capture_output=True,
        text=True,
        timeout=limit,
        preexec_fn=heed_ctrl_c,
        check=False,
    )
    return Ended(done.returncode, done.stdout.strip(), done.stderr.strip())
