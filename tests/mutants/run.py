"""`make mutants`: plants each fault of `planted.py` into a copy of the project, and runs the tests that should notice.

A fault that no test notices, or whose place is not found any more, fails the target.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from tests.mutants.planted import MUTANTS, Mutant

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 240
"""A test that hangs has noticed, too."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", default="", help="a part of the file's name, or of what a user would suffer")
    parser.add_argument("--jobs", type=int, default=max(1, os.cpu_count() or 1), help="copies that are tried together")
    options = parser.parse_args()
    chosen = [mutant for mutant in MUTANTS if options.only in f"{mutant.file}: {mutant.suffers}"]
    with tempfile.TemporaryDirectory(prefix="pippin-mutants-") as name:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(options.jobs):
            copies.put(_copy(Path(name) / str(number)))
        with ThreadPoolExecutor(options.jobs) as threads:
            survived = [mutant for mutant in threads.map(lambda each: _try(each, copies), chosen) if mutant is not None]
    print(f"{len(chosen) - len(survived)} of {len(chosen)} planted faults were noticed")
    return 1 if survived else 0


def _copy(folder: Path) -> Path:
    """The project as it is, without what is made."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file() or (ROOT / name).is_symlink():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
    return folder


def _try(mutant: Mutant, copies: SimpleQueue[Path]) -> Mutant | None:
    """The mutant, if nothing noticed it."""
    folder = copies.get()
    file = folder / mutant.file
    whole = file.read_text(encoding="utf-8")
    began = time.monotonic()
    try:
        if whole.count(mutant.text) != 1:
            print(f"LOST     {mutant.file}: {mutant.text!r} is there {whole.count(mutant.text)} times", flush=True)
            return mutant
        file.write_text(whole.replace(mutant.text, mutant.replacement), encoding="utf-8")
        how = _run(folder, mutant.tests)
    finally:
        file.write_text(whole, encoding="utf-8")
        copies.put(folder)
    took_s = time.monotonic() - began
    print(f"{how:8} {took_s:4.0f} s  {mutant.file}: {mutant.suffers}", flush=True)
    return mutant if how == "SURVIVED" else None


def _run(folder: Path, tests: tuple[str, ...]) -> str:
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-n", "0", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(folder)}
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        out, _ = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "hung"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, 9)
            process.communicate()
    if process.returncode not in (0, 1, 2):
        print(out.decode("utf-8", "replace")[-2000:], flush=True)
        return "SURVIVED"  # nothing was run
    return "SURVIVED" if process.returncode == 0 else "noticed"


if __name__ == "__main__":
    sys.exit(main())
