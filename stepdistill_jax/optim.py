"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stepdistill_jax.spec import InputError

OPTIMIZERS = ("adamw", "adafactor")
SCHEDULES = ("linear", "constant", "cosine", "rsqrt")

# Hugging Face's inverse square root has this time scale where there is no warm-up.
RSQRT_TIMESCALE = 10_000


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The defaults are the paper's: Hugging Face's trainer as the released code leaves it.

    Attributes:
        name: OPTIMIZER, adamw | adafactor.
        learning_rate: LEARNING_RATE, the schedule's highest value (5e-5 in the paper, A.1). With
            adafactor it is relative to each parameter's root mean square; 1e-3 is T5's.
        schedule: SCHEDULE, linear | constant | cosine | rsqrt; see `schedule`.
        warmup_steps: WARMUP_STEPS, steps of linear rise from 0.
        weight_decay: WEIGHT_DECAY, adamw only; decoupled, times the learning rate. See
            `decay_mask` for what is left out.
        clip_norm: CLIP_NORM, the gradient's global norm before the update; 0 = off.
        beta1, beta2, epsilon: BETA1, BETA2, EPSILON, adamw only.
    """

    name: str = "adamw"
    learning_rate: float = 5e-5
    schedule: str = "linear"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def __post_init__(self) -> None:
        if self.name not in OPTIMIZERS:
            raise InputError(f"OPTIMIZER={self.name!r}: expected one of {', '.join(OPTIMIZERS)}")
        if self.schedule not in SCHEDULES:
            raise InputError(f"SCHEDULE={self.schedule!r}: expected one of {', '.join(SCHEDULES)}")
        for field in ("learning_rate", "warmup_steps", "weight_decay", "clip_norm"):
            value = getattr(self, field)
            if not 0 <= value < math.inf:
                raise InputError(f"{field.upper()}={value}: expected a number >= 0")
        for field in ("beta1", "beta2"):
            value = getattr(self, field)
            if not 0.0 <= value < 1.0:
                raise InputError(f"{field.upper()}={value}: expected 0 <= value < 1")
        if not 0 < self.epsilon < math.inf:
            raise InputError(f"EPSILON={self.epsilon}: expected a number > 0")
        if self.name == "adafactor":
            self._refuse_adamw_settings()

    def _refuse_adamw_settings(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in ("weight_decay", "beta1", "beta2", "epsilon"):
            if getattr(self, field) != defaults[field]:
                raise InputError(
                    f"{field.upper()}={getattr(self, field)} has no effect with "
                    f"OPTIMIZER='adafactor'; leave it at {defaults[field]} or use 'adamw'"
                )


def schedule(config: OptimizerConfig, train_steps: int) -> optax.Schedule:
    """Learning rate by the number of updates made so far, as Hugging Face's schedulers count it.

    The first update reads step 0 and the last reads ``train_steps - 1``: without warm-up the first
    update has the full rate, with warm-up of w steps it has 0 and update w is the first with the
    full rate. With t updates made and progress ``p = (t - w) / (train_steps - w)``, after warm-up:

        linear    1 - p
        constant  1
        cosine    (1 + cos(pi p)) / 2
        rsqrt     sqrt(w / t), T5's; ``1 / sqrt(1 + t / 10000)`` without warm-up

    Raises:
        InputError: warm-up is as long as training.
    """
    warmup, peak = config.warmup_steps, config.learning_rate
    if warmup and warmup >= train_steps:
        raise InputError(
            f"WARMUP_STEPS={warmup} leaves nothing of TRAIN_STEPS={train_steps}; "
            f"lower WARMUP_STEPS or raise TRAIN_STEPS"
        )
    decay_steps = max(train_steps - warmup, 1)
    timescale = warmup or RSQRT_TIMESCALE

    def rsqrt(step: jax.typing.ArrayLike) -> jax.Array:
        return peak / jnp.sqrt(1.0 + step / timescale)

    decays: dict[str, optax.Schedule] = {
        "linear": optax.linear_schedule(peak, 0.0, decay_steps),
        "constant": optax.constant_schedule(peak),
        "cosine": optax.cosine_decay_schedule(peak, decay_steps),
        "rsqrt": rsqrt,
    }
    decay = decays[config.schedule]
    if not warmup:
        return decay
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), decay], [warmup])


def decay_mask(params: Any) -> Any:
    """True where weight decay applies: everything but layer-norm scales and relative-position bias.

    Hugging Face's trainer leaves out what it names norm or bias; T5 has no other biases.
    """

    def decays(path: tuple[jax.tree_util.DictKey, ...], _: Any) -> bool:
        return not {"scale", "rel_embedding"} & {key.key for key in path}

    return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """The update rule: clip by global norm, then AdamW or Adafactor under `schedule`.

    AdamW is PyTorch's (epsilon outside the root, decay decoupled), with which the released code
    trains. Adafactor is T5's: second moments factored where two dimensions reach 128, no momentum,
    updates clipped at root mean square 1 and scaled by the parameter's.
    """
    rate = schedule(config, train_steps)
    if config.name == "adamw":
        rule = optax.adamw(
            rate,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decay_mask,
        )
    else:
        rule = optax.adafactor(rate)
    if not config.clip_norm:
        return rule
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)
