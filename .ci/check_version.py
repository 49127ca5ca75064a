"""Check that the version of the package, the changelog and the tag of the commit agree.

    python .ci/check_version.py

The version stands in `ghn_jax/__init__.py` alone. A commit tagged `v1.2.3` is version 1.2.3, which
is the newest in CHANGELOG.md, with nothing left unreleased. Any other commit is that newest version
with nothing unreleased, or a development version after it, such as 1.3.0.dev0.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    """Print what disagrees; return 1 if anything does."""
    version = read_version((ROOT / "ghn_jax" / "__init__.py").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    command = ["git", "-C", str(ROOT), "tag", "--points-at", "HEAD"]
    tags = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    faults = find_faults(version, changelog, tags)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    return 1 if faults else 0


def read_version(source: str) -> str:
    """The string that the source assigns to `__version__`."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__version__":
            return str(ast.literal_eval(node.value))
    raise ValueError("ghn_jax/__init__.py has no __version__, expected a string")


def find_faults(version: str, changelog: str, tags: Sequence[str]) -> list[str]:
    """Say what disagrees.

    Args:
        version: Of the package.
        changelog: Text of CHANGELOG.md.
        tags: Of the commit; those of versions begin with v and a digit.
    """
    headings = re.findall(r"^## \[(.+?)\]", changelog, flags=re.MULTILINE)
    released = [heading for heading in headings if heading != "Unreleased"]
    newest = released[0] if released else None
    match = re.search(r"^## \[Unreleased\][^\n]*\n(.*?)(?=^## |\Z)", changelog, re.M | re.S)
    is_pending = match is not None and re.search(r"^- ", match[1], re.M) is not None
    faults = []
    if not re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", version):
        return [f"the version is {version!r}, expected one such as 1.2.3 or 1.3.0.dev0"]
    if released != sorted(released, key=_number, reverse=True):
        faults.append(f"CHANGELOG.md lists {', '.join(released)}, expected the newest first")
    is_development = ".dev" in version
    if is_development and newest and _number(version) <= _number(newest):
        faults.append(f"the version is {version}, expected one after CHANGELOG.md's {newest}")
    if not is_development and version != newest:
        faults.append(f"the version is {version}, but CHANGELOG.md's newest is {newest}")
    if not is_development and is_pending:
        faults.append(f"the version is {version}, but CHANGELOG.md has unreleased changes")
    for tag in tags:
        if re.match(r"v\d", tag) and tag != f"v{version}":
            faults.append(f"the commit is tagged {tag}, but the version is {version}")
    return faults


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".dev")[0].split("."))


if __name__ == "__main__":
    sys.exit(main())
