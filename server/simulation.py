"""Resolve `simulate.*` for the engine: the model's shape, the machine, and the memory limit.

The profiles' models are known by name; any other is a folder, a hub id or a config.json. The planner does the
computing.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from mlx_backend.api.errors import ModelLoadError
from mlx_backend.api.interface import EngineConfig, KVCacheConfig
from mlx_backend.model.checkpoint import find_model
from mlx_backend.planning.machines import Machine, UnknownMachine, find_machine
from server.config import Config, ConfigError, engine_config
from server.profiles import Profile, find_profile, model_names
from server.profiles.planning import choose_file, limit_bytes

logger = logging.getLogger("pippin.simulation")


def check(config: Config) -> None:
    """Raise ConfigError if a simulation is incomplete."""
    wanted = config.simulate
    if wanted.machine is None and wanted.model is None:
        return
    if config.backend != "mock":
        raise ConfigError("simulate: a machine is simulated by the mock; say --backend mock")
    if wanted.machine is None:
        raise ConfigError("simulate.model is served as on a machine; name it with --simulate (pippin plan --machines)")
    if wanted.model is None:
        raise ConfigError(f"simulate.machine needs a model; name it with --as: {', '.join(model_names())}, a folder, …")


def simulated(config: Config) -> tuple[str, EngineConfig]:
    """Return the model's name, and the engine's configuration. Raises ModelLoadError."""
    machine, name = _machine(config.simulate.machine or ""), config.simulate.model or ""
    profile = find_profile(name)
    logger.warning("simulated: %s on %s; text is made up, a token a byte of it; speeds are estimates", name, machine.id)
    if profile is not None:
        return name, engine_config(_with_profile(config, profile, machine), str(profile.model_file))
    return _name_of(name), engine_config(config, str(_find(name, machine, config.kv_cache)))


def _machine(machine_id: str) -> Machine:
    try:
        return find_machine(machine_id)
    except UnknownMachine as error:
        raise ModelLoadError(f"simulate.machine: {error}") from None


def _with_profile(config: Config, profile: Profile, machine: Machine) -> Config:
    """Return the configuration with the profile's KV cache and limit, unless others are set."""
    if profile.num_machines > 1:
        raise ModelLoadError(f"{profile.name} is for {profile.num_machines} machines; one is simulated")
    if profile.kv_bits is not None and not config.kv_cache.is_quantized:
        config = replace(config, kv_cache=KVCacheConfig(bits=profile.kv_bits))
    limit = limit_bytes(profile, machine)
    if config.memory.limit_gb is None and limit > machine.gpu_limit_bytes:
        config = replace(config, memory=replace(config.memory, limit_gb=limit / 1e9))
    return config


def _find(name: str, machine: Machine, kv_cache: KVCacheConfig) -> Path:
    """Return the file or folder that describes the model's shape."""
    path = Path(name).expanduser()
    if path.exists():
        return path
    shipped = choose_file(name, machine, kv_cache)
    if shipped is None and "/" not in name:
        raise ModelLoadError(f"simulate.model: there is no {name!r}; known by name: {', '.join(model_names())}")
    return shipped or find_model(name)


def _name_of(name: str) -> str:
    path = Path(name).expanduser()
    if path.is_file():
        return path.resolve().parent.name if path.name == "config.json" else path.stem
    return path.resolve().name if path.is_dir() else name
