"""The binaries: ``python -m launch.NAME``."""

import os
import signal
import sys
from types import FrameType


def _end(number: int, frame: FrameType | None) -> None:
    del frame
    os.write(2, f"\nstopped by {signal.Signals(number).name} in start-up\n".encode())
    os._exit(75)  # spec.EXIT_PREEMPTED, which is not imported yet.


# Python runs this file before a binary's imports, which take seconds; later `flags` takes over.
if sys.argv[:1] == ["-m"]:
    for _number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(_number, _end)
