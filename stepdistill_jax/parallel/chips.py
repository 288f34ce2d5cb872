"""Public peak figures of accelerators, as JAX counts devices."""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peak figures of one device: of a chip, on TPU7x of one of its two halves.

    Attributes:
        kind: ``device_kind`` of its JAX devices.
        flops: dense bfloat16 FLOP/s.
        hbm_bytes: capacity of its memory; the compiler keeps a little of it.
        hbm_bandwidth: bytes/s.
        ici_bandwidth: bytes/s that it can send to its neighbours over all links together.
        dcn_bandwidth: bytes/s that it can send to other slices; None = no public figure.
        source: where the figures stand.
    """

    kind: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float | None
    source: str


_PAGES = "https://cloud.google.com/tpu/docs"

# Generation, as it begins the name of a topology -> figures. ICI: half of the page's
# bidirectional figure; between the two halves of a TPU7x chip there is a faster link, of which no
# account is taken. DCN: the page's for a chip, or of a pod over its chips. Read in November 2026.
CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 300e9, None, f"{_PAGES}/v4"),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256, f"{_PAGES}/v5e"),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 600e9, 50e9 / 8, f"{_PAGES}/v5p"),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 400e9, 25.6e12 / 8 / 256, f"{_PAGES}/v6e"),
    "tpu7x": Chip(
        "TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 300e9, 100e9 / 8 / 2, f"{_PAGES}/tpu7x"
    ),
}

# `device_kind` -> dense bfloat16 FLOP/s: of TPUs as above, some of which newer runtimes name
# otherwise; of GPUs from NVIDIA's H100, H200 and A100 data sheets (SXM, without sparsity).
PEAK_FLOPS: dict[str, float] = {
    **{chip.kind: chip.flops for chip in CHIPS.values()},
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
