"""What all tests share: how hypothesis searches."""

from __future__ import annotations

from hypothesis import settings

# No deadline: how long an example takes says more about the machine than about the code.
settings.register_profile("pippin", deadline=None)
settings.load_profile("pippin")
