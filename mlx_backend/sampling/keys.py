"""Random numbers of a row: a separate key per row, from which each output position derives one.

They depend on the seed, on the row's number among the n continuations and on the position; on nothing else.
"""

from __future__ import annotations

import secrets

_MASK64 = (1 << 64) - 1
_CHANCE = 0x5854435F6368616E
"""Separates a step's chance from its key."""


def base_key(seed: int | None, ordinal: int) -> int:
    """Return 64 bits for a row, from its seed and its number among the n continuations; random without a seed."""
    if seed is None:
        return secrets.randbits(64)
    return _mix(_mix(seed & _MASK64) + ordinal)


def step_key(key: int, position: int) -> tuple[int, int]:
    """Return the random key of one output position, as two 32-bit words."""
    mixed = _mix(key + position)
    return mixed >> 32, mixed & 0xFFFFFFFF


def step_chance(key: int, position: int) -> float:
    """Return a uniform number in [0, 1) for one output position, unrelated to draws with the step's key."""
    return (_mix(_mix(key + position) ^ _CHANCE) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    """Mix neighbouring numbers into unrelated ones: splitmix64 (Steele et al. 2014, doi 10.1145/2714064.2660195)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
