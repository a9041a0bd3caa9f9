"""The shipped profiles: model, quantization and machine. A table; no MLX, no arithmetic.

Their settings are in `configs/`. The JSON files here are the models' public config.json with the profile's
quantization and without weights, which is enough for a plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One row."""

    name: str
    machine: str
    """Id of the target machine."""
    model: str
    """Name of the JSON file, without its suffix."""
    num_machines: int = 1
    """Number of such machines that share the model."""
    kv_bits: int | None = None
    """Bits of keys and values, as in the settings; None: full precision."""
    wired_limit_mb: int | None = None
    """Required GPU limit, in MiB as sysctl takes it; None: the default is enough."""

    @property
    def config_file(self) -> str:
        """Path of the settings from the root of the repository; an installed Pippin finds them by `settings_file`."""
        return f"configs/{self.name}.yaml"

    @property
    def model_file(self) -> Path:
        return Path(__file__).resolve().parent / f"{self.model}.json"


PROFILES = (
    Profile(name="r1-m3-ultra-512", machine="m3-ultra-512", model="deepseek-r1-4bit"),
    Profile(
        name="r1-two-m2-ultra-192",
        machine="m2-ultra-192",
        model="deepseek-r1-3bit",
        num_machines=2,
        wired_limit_mb=175_000,
    ),
    Profile(name="qwen3-235b-192", machine="m2-ultra-192", model="qwen3-235b-4bit"),
    Profile(name="qwen3-235b-128", machine="m4-max-128", model="qwen3-235b-3bit", kv_bits=8, wired_limit_mb=112_000),
    Profile(name="gpt-oss-120b-192", machine="m2-ultra-192", model="gpt-oss-120b-mxfp4"),
    Profile(name="gpt-oss-120b-128", machine="m4-max-128", model="gpt-oss-120b-mxfp4"),
    Profile(name="laptop-16", machine="m1-16", model="qwen3-8b-4bit", kv_bits=8),
)


def model_files(name: str) -> list[Path]:
    """Return the shipped config.json files for `name`: `deepseek-r1-4bit`, or `deepseek-r1` for every quantization."""
    folder = Path(__file__).resolve().parent
    exact = folder / f"{name}.json"
    if exact.is_file():
        return [exact]
    return sorted(file for file in folder.glob("*.json") if file.stem.rpartition("-")[0] == name)


def model_names() -> list[str]:
    """Return the names that `model_files` accepts, without the quantizations."""
    return sorted({file.stem.rpartition("-")[0] for file in Path(__file__).resolve().parent.glob("*.json")})


def settings_file(file: Path) -> Path:
    """Return the shipped settings if `file` is just their name, as `laptop-16`, and no such file exists.

    Else `file`.
    """
    shipped = Path(__file__).resolve().parent / "configs" / f"{file}.yaml"
    return shipped if file.name == str(file) and not file.exists() and shipped.is_file() else file


def find_profile(name: str) -> Profile | None:
    """Return the profile of this name; None if there is none, or if a file or folder has the name."""
    if Path(name).exists():
        return None
    return next((profile for profile in PROFILES if profile.name == name), None)
