"""Cases of every bad outcome, so that a test can see that each is noticed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path


def case(seed: int, place: Path) -> str:
    """Case 1 dies, 2 hangs, 3 fails."""
    match seed:
        case 1:
            os.kill(os.getpid(), signal.SIGKILL)
        case 2:
            time.sleep(60)
        case 3:
            seed //= 0
    return "done"
