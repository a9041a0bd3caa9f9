"""`pippin join`: hold a part of the model that another machine serves, until that server ends.

Knows where models are. What is done then is known to the engine.
"""

from __future__ import annotations

from pathlib import Path

import typer

from server import model_files, pocket

LeaderArgument = typer.Argument(
    metavar="LEADER:PORT", help="Where rank 0 waits: its address in the hostfile, and port 7400 or its ranks.port."
)
KeyOption = typer.Option(None, "--key", metavar="@FILE", help="The file of the key that rank 0 has, too.")


def join(
    leader: str = LeaderArgument,
    key: str | None = KeyOption,
    model: str | None = typer.Option(None, help="Folder or hub id of the model here; else as rank 0 calls it."),
    rank: int | None = typer.Option(None, help="The rank to become; else the one of this machine in the hostfile."),
) -> None:
    """Hold a part of the model that `pippin serve --hostfile` serves on another machine.

    Ends with 0 where rank 0 or a signal has ended it, 75 where rank 0 is lost or cannot be reached, 77 where it is
    refused (another key, version or model), 70 where it fails itself, and 2 where it cannot be started so. It does not
    try again: `pippin install-service --join` has the system do that.
    """
    from mlx_backend import follow  # late: `pippin --help` needs no engine
    from mlx_backend.model.checkpoint import find_model

    def find(name: str) -> Path:
        asked = model or name
        folder = pocket.folder() if pocket.is_meant(asked) else find_model(asked)
        model_files.ensure(folder, is_repeated=False)
        return folder

    follow.end(follow.follow(leader, key or "", rank=rank, find=find))
