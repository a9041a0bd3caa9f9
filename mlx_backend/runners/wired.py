"""Wired weights of one process: the facts, the lock that other processes see, and when each limit is set in MLX.

Runs on the device thread. On devices other than a Mac's nothing is queried and nothing is done. Not run on a Mac.
"""

from __future__ import annotations

import logging
from dataclasses import replace

from mlx_backend.planning.limits import DeviceFacts
from mlx_backend.planning.macos import find_panics, macos_version, wired_bytes
from mlx_backend.planning.wired_lock import WiredElsewhere, WiredLock, look
from mlx_backend.planning.wiring import WiredPolicy, Wiring, WiringFacts, decide_wiring
from mlx_backend.runners import device

logger = logging.getLogger("pippin.mlx")

_OTHER_ARRAYS = 64
"""Live arrays beside the parameters: tables of rotary embeddings, keys of random numbers."""


class WiredWeights:
    """Wired weights: `decide` before a weight is read, `wire` after loading and probing, `unwire` at the end."""

    def __init__(self) -> None:
        self.plan = Wiring()
        self._recommended_bytes = 0
        self._lock: WiredLock | None = None

    def decide(
        self, policy: WiredPolicy, facts: DeviceFacts, weights_bytes: int, model: str, *, has_several_models: bool
    ) -> Wiring:
        """Decide whether to wire the weights. Takes the lock if they are to be wired."""
        self._recommended_bytes = facts.recommended_bytes
        known = read_wiring_facts(policy, facts, weights_bytes, has_several_models=has_several_models)
        self.plan = decide_wiring(known)
        if self.plan.wired_bytes:
            try:
                self._lock = WiredLock.acquire(model, forgets_panics=policy == "always")
            except WiredElsewhere as error:
                text = f"{error}, and only one process of a machine should"
                self.plan = decide_wiring(replace(known, holder=error.holder, lock_error=text))
            except OSError as error:
                text = f"the lock that keeps other processes from wiring cannot be taken: {error}"
                self.plan = decide_wiring(replace(known, lock_error=text))
        return self.plan

    def wire(self, num_parameters: int) -> Wiring:
        """Wire all live arrays: the weights, and the little that probes left. Returns the outcome."""
        if self._lock is None:
            return self.plan
        try:
            limit = device.wire(num_parameters + _OTHER_ARRAYS, self._recommended_bytes)
        except (RuntimeError, ValueError) as error:
            logger.warning("the weights are not wired: %s", error)
            self.unwire()
            self.plan = Wiring(reason=f"MLX has refused to wire the weights: {error}")
        else:
            self.plan = replace(self.plan, wired_bytes=limit)
        return self.plan

    def unwire(self) -> None:
        """Unwire everything, so that another process may wire. Does nothing if nothing was wired."""
        if self._lock is not None:
            lock, self._lock = self._lock, None
            device.unwire()
            lock.release()


def read_wiring_facts(
    policy: WiredPolicy, facts: DeviceFacts, weights_bytes: int, *, has_several_models: bool = False
) -> WiringFacts:
    """Return all facts except the lock's holder, which is known once the lock is tried."""
    known = WiringFacts(
        policy=policy,
        weights_bytes=weights_bytes,
        device=facts.name,
        memory_bytes=facts.memory_bytes,
        recommended_bytes=facts.recommended_bytes,
        mlx=device.mlx_version(),
        has_several_models=has_several_models,
    )
    if not facts.recommended_bytes or policy == "never":
        return known
    record, is_held = look()
    version, _ = macos_version()
    return replace(
        known,
        macos=version,
        wired_now_bytes=wired_bytes(),
        panics=find_panics(),
        first_wired_at=record.first_at,
        left_by=None if is_held else record.holder,
    )
