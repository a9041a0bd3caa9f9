"""Entry point of the `pippin` command: loads Pippin's own packages, whatever else is on Python's path.

`server` is a common name. A folder of PYTHONPATH, a `.pth` file or an editable install may put another package of that
name before Pippin's; a package that is loaded by its location is not looked up on the path.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

PACKAGES = ("mlx_backend", "server")


def main() -> None:
    """Run the command line; one line where Pippin's files have been overwritten."""
    for name in PACKAGES:
        load(name)
    try:
        from server import cli
    except ImportError as error:
        if not str(error.name).startswith(PACKAGES):
            raise
        sys.exit(
            f"pippin: the packages in {Path(__file__).parent} are not Pippin's alone ({error}). Another distribution "
            "with a package of the same name is installed there. Install Pippin into an environment of its own, with "
            "`uv tool install` or `pipx`."
        )
    cli.main()


def load(name: str) -> None:
    """Import the package `name` that lies beside this file."""
    folder = Path(__file__).parent / name
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"there is no package in {folder}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)


if __name__ == "__main__":
    main()
