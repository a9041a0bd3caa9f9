"""Parts of one server that its routes read: every dialect's router is built with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from server.batches.worker import BatchWorker
from server.config import Config, CurrentConfig
from server.errors import ErrorCounts
from server.lifecycle import Lifecycle
from server.power import PowerMeter
from server.recent_errors import RecentErrors
from server.service.live import RecentActivity
from server.service.registry import ModelRegistry


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerParts:
    """One per application."""

    settings: CurrentConfig
    origins: Mapping[str, str]
    """Source of each setting, by dotted key."""
    registry: ModelRegistry
    lifecycle: Lifecycle
    error_counts: ErrorCounts
    recent_errors: RecentErrors
    activity: RecentActivity
    power: PowerMeter
    batches: BatchWorker | None = None
    """Clients' files and batches; None if no folder is configured."""

    @property
    def config(self) -> Config:
        """The current configuration."""
        return self.settings.now
