"""Run the programs of `launch/` as a user does."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]


def run(program, *arguments):
    """Return the exit status, the standard output and the standard error."""
    result = subprocess.run(
        [sys.executable, f"launch/{program}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "100"},
        check=False,
    )
    return result.returncode, result.stdout, result.stderr
