"""Optimizers and learning-rate schedules, by name."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError

# Time scale of Hugging Face's inverse square root without warm-up.
RSQRT_TIMESCALE = 10_000


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """The update rule. The defaults are the paper's, as the released code leaves them."""

    HEADING = "Optimizer"

    name: str = setting("adamw", "Update rule.", macro="OPTIMIZER", choices=("adamw", "adafactor"))
    learning_rate: float = setting(
        5e-5,
        "Peak learning rate of the schedule. With adafactor it is relative to each parameter's "
        "root mean square; T5 uses 1e-3.",
        at_least=0,
    )
    schedule: str = setting(
        "linear",
        "Learning rate after the warm-up. linear falls to 0 at TRAIN_STEPS.",
        choices=("linear", "constant", "cosine", "rsqrt"),
    )
    warmup_steps: int = setting(0, "Steps of linear warm-up from 0.", at_least=0)
    weight_decay: float = setting(
        0.0, "Decoupled weight decay, times the learning rate. adamw only; 0 = off.", at_least=0
    )
    clip_norm: float = setting(
        1.0, "Maximum global norm of the gradient; 0 = no clipping.", at_least=0
    )
    beta1: float = setting(0.9, "AdamW: decay rate of the gradients' mean.", at_least=0, below=1)
    beta2: float = setting(
        0.999, "AdamW: decay rate of the squared gradients' mean.", at_least=0, below=1
    )
    epsilon: float = setting(1e-8, "AdamW: added to the denominator.", above=0)

    def __post_init__(self) -> None:
        check(self)
        if self.name == "adafactor":
            self._refuse_adamw_settings()

    def _refuse_adamw_settings(self) -> None:
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        for field in ("weight_decay", "beta1", "beta2", "epsilon"):
            if getattr(self, field) != defaults[field]:
                raise InputError(
                    f"{field.upper()}={getattr(self, field)} has no effect with "
                    f"OPTIMIZER='adafactor'. Leave it at {defaults[field]}, or set "
                    "OPTIMIZER='adamw'."
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
            f"WARMUP_STEPS={warmup}: expected less than TRAIN_STEPS={train_steps}. "
            "Lower WARMUP_STEPS or raise TRAIN_STEPS."
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

    Hugging Face's trainer excludes parameters named norm or bias; T5 has no other biases.
    """

    def decays(path: tuple[jax.tree_util.DictKey, ...], _: Any) -> bool:
        return not {"scale", "rel_embedding"} & {key.key for key in path}

    return jax.tree_util.tree_map_with_path(decays, params)


def optimizer(config: OptimizerConfig, train_steps: int) -> optax.GradientTransformation:
    """The update rule: clip by global norm, then AdamW or Adafactor under `schedule`.

    AdamW is PyTorch's, as in the released code: epsilon outside the root, decoupled decay.
    Adafactor is T5's: second moments factored if two dimensions reach 128, no momentum, updates
    clipped at root mean square 1 and scaled by that of the parameter.
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
