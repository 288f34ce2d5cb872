"""Plans of programs that were never compiled, for tests of what is made of plans."""

from stepdistill_jax.parallel.chips import CHIPS
from stepdistill_jax.plan.program import TRAIN, Memory, Program
from stepdistill_jax.plan.tables import Planned
from stepdistill_jax.plan.work import Work

CHIP = CHIPS["v5e"]


def planned(rows=64, total=0.0, work=None, remat="full", **more):
    """A train step of a v5e:2x2 that needs `total` bytes a device, and does `work` if they fit."""
    fits = total <= CHIP.hbm_bytes
    values = {
        "topology": "v5e:2x2",
        "chip": CHIP,
        "slices": 1,
        "devices": 4,
        "mesh": {"replica": 1, "fsdp": 4, "tensor": 1},
        "remat": remat,
        "scan_layers": True,
        "rows": rows,
        "pairs": None,
        "about": "8 inputs and 4 + 4 targets",
        "parameters": 1000,
        "model_flops": None,
        "held": 0.0,
        "program": Program(
            TRAIN,
            fits,
            Memory(1.0, 2.0, 3.0, total, itemized=fits),
            (work or Work(1e12, 1e9, (), 0)) if fits else None,
            lower_seconds=1.0,
            compile_seconds=2.0,
            text="HloModule m",
        ),
    }
    return Planned(**{**values, **more})
