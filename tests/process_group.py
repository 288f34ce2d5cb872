"""Starts the binaries in one or several processes on this machine, and leaves none behind."""

from __future__ import annotations

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parents[1]
# Much of the suite's time is compilation of programs that run once: cheap machine code, by the
# emitters that compile quickest. As users do, .ci/run compiles the demo.
IN_HASTE = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Of a process with so many CPU devices; its programs are compiled in haste: they run once."""
    flags = f"--xla_force_host_platform_device_count={devices} {IN_HASTE}"
    return {**os.environ, "XLA_FLAGS": flags} | more


class ProcessGroup:
    """`count` processes of `devices` CPU devices each, that run ``python -m MODULE ARGUMENTS``.

    To be used in a `with`: whatever is still alive at its end is killed.
    """

    def __init__(
        self,
        count: int,
        devices: int,
        command: Sequence[str],
        folder: pathlib.Path,
        only: Sequence[int] | None = None,
    ) -> None:
        """Starts them, or of the `count` only those that are named."""
        folder.mkdir(parents=True, exist_ok=True)
        address = f"127.0.0.1:{free_port()}"
        self.processes = []
        self.logs = [folder / f"log{number}" for number in range(count)]
        for number in range(count) if only is None else only:
            named = {
                "JAX_COORDINATOR_ADDRESS": address,
                "JAX_NUM_PROCESSES": str(count),
                "JAX_PROCESS_ID": str(number),
            }
            with open(self.logs[number], "w") as output:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, *command],
                        cwd=ROOT,
                        env=environment(devices, **named),
                        stdout=output,
                        stderr=output,
                    )
                )

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *exception: object) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()

    def signal_when(self, reached, number: int, sent: signal.Signals, seconds: float) -> None:
        """Sends a signal to one process as soon as `reached()`, which has to come in time."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < deadline, self.output()
            assert all(process.poll() is None for process in self.processes), self.output()
            time.sleep(0.02)
        self.processes[number].send_signal(sent)

    def wait(self, seconds: float) -> list[int]:
        """Exit codes of all, which have to end in time."""
        deadline = time.monotonic() + seconds
        try:
            return [p.wait(max(deadline - time.monotonic(), 0.1)) for p in self.processes]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(self.output()) from error

    def output(self) -> str:
        """The end of what each process wrote."""
        return "\n".join(
            f"== {log.name}\n{log.read_text()[-3000:]}" for log in self.logs if log.exists()
        )
