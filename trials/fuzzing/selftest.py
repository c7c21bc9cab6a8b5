"""Cases with every bad outcome, for a test that each outcome is noticed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def case(seed: int, place: Path) -> str:
    """Case 1 dies, case 2 hangs, case 3 raises an exception."""
    match seed:
        case 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2:
            time.sleep(60)
        case 3:
            seed //= 0
    return "done"
