"""``python -m tasks`` lists the registered SeqIO tasks, one name a line."""

from __future__ import annotations

import importlib
import pkgutil
import signal

import tasks


def main() -> None:
    """Imports every module of this folder and prints the tasks that it registered."""
    # `| head` ends this program quietly, as it ends ls.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    for module in sorted(info.name for info in pkgutil.iter_modules(tasks.__path__)):
        if module != "__main__":
            for name in getattr(importlib.import_module(f"tasks.{module}"), "NAMES", ()):
                print(name)


if __name__ == "__main__":
    main()
