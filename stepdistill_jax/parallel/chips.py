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
        hbm_bytes: capacity of its memory; the compiler reserves a little of it.
        hbm_bandwidth: bytes/s.
        ici_bandwidth: bytes/s to its neighbours, all links together.
        dcn_bandwidth: bytes/s to other slices; None = no public figure.
        source: page of the figures.
    """

    kind: str
    flops: float
    hbm_bytes: int
    hbm_bandwidth: float
    ici_bandwidth: float
    dcn_bandwidth: float | None
    source: str


_PAGES = "https://cloud.google.com/tpu/docs"

# Generation, the prefix of a topology's name -> figures, read in November 2026. ICI: half of the
# page's bidirectional figure; the faster link between the halves of a TPU7x chip is not counted.
# DCN: the page's figure for a chip, or that for a pod divided by its chips.
CHIPS: dict[str, Chip] = {
    "v4": Chip("TPU v4", 275e12, 32 * GIB, 1228e9, 300e9, None, f"{_PAGES}/v4"),
    "v5e": Chip("TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, 6.4e12 / 8 / 256, f"{_PAGES}/v5e"),
    "v5p": Chip("TPU v5", 459e12, 95 * GIB, 2765e9, 600e9, 50e9 / 8, f"{_PAGES}/v5p"),
    "v6e": Chip("TPU v6 lite", 918e12, 32 * GIB, 1638e9, 400e9, 25.6e12 / 8 / 256, f"{_PAGES}/v6e"),
    "tpu7x": Chip(
        "TPU7x", 2307e12 / 2, 96 * GIB, 7380e9 / 2, 300e9, 100e9 / 8 / 2, f"{_PAGES}/tpu7x"
    ),
}

# `device_kind` -> dense bfloat16 FLOP/s: TPUs as above, with the other names of newer runtimes;
# GPUs from NVIDIA's H100, H200 and A100 data sheets (SXM, without sparsity).
PEAK_FLOPS: dict[str, float] = {
    **{chip.kind: chip.flops for chip in CHIPS.values()},
    "TPU v5e": CHIPS["v5e"].flops,
    "TPU v5p": CHIPS["v5p"].flops,
    "TPU v6e": CHIPS["v6e"].flops,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
