"""A program that publishes, forks, and publishes in the child, too: `python -m tests.support.forking`, with the settings of a world.

Its exit code is the child's: 0 if that has published two jobs, and ended as any program does.
"""

from __future__ import annotations

import os
import signal
import sys

from tests.support.story_app import app, elsewhere, step


def main() -> None:
    step.publish(n=1)  # without a key: so the topic's partitions are asked for
    admin = app.broker.admin()
    pid = os.fork()
    if pid == 0:
        signal.alarm(20)  # a client of the parent's answers nothing here, for ever
        step.publish(n=2)
        elsewhere.publish(n=3)  # a topic of which nothing is known yet
        assert admin.cluster().brokers
        sys.exit(0)
    _, status = os.waitpid(pid, 0)
    step.publish(n=4)
    sys.exit(0 if status == 0 else 1)


if __name__ == "__main__":
    main()
