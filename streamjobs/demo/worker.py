"""`streamjobs worker`, ended with whoever started it: `python -m streamjobs.demo.worker -A …`.

Standard input is a pipe that only the demo holds. *Bites*: the demo is killed, and its broker with it; its worker would go on for ever,
waiting for a broker that never comes back.
"""

from __future__ import annotations

import os
import runpy
import signal
import sys
import threading


def end_with_parent() -> None:
    """The worker leads a session of its own, so all its processes go."""
    os.read(0, 1)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    threading.Thread(target=end_with_parent, daemon=True).start()
    sys.argv[1:1] = ["worker"]
    runpy.run_module("streamjobs", run_name="__main__")
