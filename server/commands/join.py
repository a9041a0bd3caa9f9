"""`pippin join`: hold a part of a model that another machine serves, until that server ends.

Finds the model; the engine does the rest.
"""

from __future__ import annotations

from pathlib import Path

import typer

from server import model_files, pocket

LeaderArgument = typer.Argument(
    metavar="LEADER:PORT", help="Address of rank 0 in the hostfile, with port 7400 or its ranks.port."
)
KeyOption = typer.Option(None, "--key", metavar="@FILE", help="File with the same key as rank 0's.")


def join(
    leader: str = LeaderArgument,
    key: str | None = KeyOption,
    model: str | None = typer.Option(None, help="Folder or hub id of the model on this machine. Default: rank 0's."),
    rank: int | None = typer.Option(None, help="Rank to become. Default: this machine's rank in the hostfile."),
) -> None:
    """Hold a part of the model that `pippin serve --hostfile` serves on another machine.

    Exits with 0 when rank 0 or a signal ends it, 75 if rank 0 is lost or unreachable, 77 if rank 0 refuses it (another
    key, version or model), 70 on its own failure, and 2 if it cannot start with these arguments. It does not retry:
    `pippin install-service --join` makes the system do that.
    """
    from mlx_backend import follow  # late: `pippin --help` needs no engine
    from mlx_backend.model.checkpoint import find_model

    def find(name: str) -> Path:
        asked = model or name
        folder = pocket.folder() if pocket.is_meant(asked) else find_model(asked)
        model_files.ensure(folder, is_repeated=False)
        return folder

    follow.end(follow.follow(leader, key or "", rank=rank, find=find))
