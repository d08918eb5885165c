"""How many examples the properties are tried on: VIDTWIN_EXAMPLES multiplies them."""

from __future__ import annotations

import os
from datetime import timedelta

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("VIDTWIN_EXAMPLES", "1"))
settings.register_profile(
    "scripts",
    database=None,
    deadline=timedelta(seconds=20),  # what takes longer hangs
    derandomize=TIMES == 1,
    max_examples=20 * TIMES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("scripts")
