"""The random numbers of a row: a key of its own, and of that one for each output position.

What is drawn depends on the seed, on which of the n continuations the row is and on the position; on nothing else.
"""

from __future__ import annotations

import secrets

_MASK64 = (1 << 64) - 1
_CHANCE = 0x5854435F6368616E
"""Tells a step's chance from its key."""


def base_key(seed: int | None, ordinal: int) -> int:
    """64 bits that are a row's own: of its seed and which of the n continuations it is; random without a seed."""
    if seed is None:
        return secrets.randbits(64)
    return _mix(_mix(seed & _MASK64) + ordinal)


def step_key(key: int, position: int) -> tuple[int, int]:
    """The random key of one output position, as two 32-bit words."""
    mixed = _mix(key + position)
    return mixed >> 32, mixed & 0xFFFFFFFF


def step_chance(key: int, position: int) -> float:
    """A number in [0, 1), evenly drawn for one output position; unrelated to what the step's key draws."""
    return (_mix(_mix(key + position) ^ _CHANCE) >> 11) / (1 << 53)


def _mix(value: int) -> int:
    """splitmix64: neighbouring numbers become unrelated ones (Steele et al. 2014, doi 10.1145/2714064.2660195)."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)
