"""`python -m tests.locked`: the lock file covers every dependency, with hashes and without download addresses."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent


def problems() -> list[str]:
    """What is wrong with requirements.lock; empty when nothing is."""
    lock = (ROOT / "requirements.lock").read_text()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    found = ["requirements.lock names a download address"] if "://" in lock else []
    pinned = {
        re.sub(r"[-_.]+", "-", match[1]).lower() for match in re.finditer(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)
    }
    for requirement in wanted:
        name = re.sub(r"[-_.]+", "-", re.split(r"[^A-Za-z0-9._-]", requirement)[0]).lower()
        if name not in pinned:
            found.append(f"{name} is not in requirements.lock: run make lock")
    blocks = re.split(r"\n(?=\S)", lock.strip())
    return found + [
        f"no hash: {block.splitlines()[0]}" for block in blocks if "==" in block and "--hash=sha256:" not in block
    ]


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
