"""The example of docs/walk.md prints what stands below it."""

import re
import subprocess
import sys

from tests.meta.tree import ROOT


def test_the_example_prints_what_the_page_shows() -> None:
    page = (ROOT / "docs/walk.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (shown,) = re.findall(r"```text\n(.*?)```", page, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", example], capture_output=True, text=True, check=True)
    assert done.stdout == shown
    assert "stale" in shown
