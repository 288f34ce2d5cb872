"""T5X's encoder-decoder model with the loss of Distilling Step-by-Step (Hsieh et al. 2023).

It takes any Flax module that T5X's `EncoderDecoderModel` takes. The loss is the one of
`stepdistill_jax.objective`, as in this package's train step:

    alpha * label_sum / label_weight + (1 - alpha) * rationale_sum / rationale_weight

T5X compiles its step over the global batch, so these are means of the global batch on any number of
devices and hosts. With microbatches T5X adds the losses of the parts. `StepByStepTrainer` makes
that sum exact. T5X's own trainer cannot, so `StepByStepModel.loss_fn` refuses it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from clu import metrics as clu_metrics
from t5x import decoding, models

from stepdistill_jax.objective import (
    ObjectiveConfig,
    StreamSums,
    coefficients,
    cross_entropy_sums,
)
from stepdistill_jax.spec import LABEL, STREAMS, InputError
from stepdistill_jax.t5x.feature_converter import StepByStepFeatureConverter
from stepdistill_jax.t5x.features import PREFIXES, stream_features

Batch = Mapping[str, jax.Array]

# A beam search with one beam is not greedy: it may return a shorter, earlier candidate.
greedy_decode = functools.partial(decoding.temperature_sample, temperature=0.0)

# Metrics of T5X that would divide the loss of both streams by the tokens of one.
_OF_ONE_STREAM = (
    "loss_per_nonpadding_target_token",
    "loss_per_all_target_tokens",
    "non_padding_fraction/loss_weights",
    "timing/target_tokens_per_second",
    "timing/target_tokens_per_second_per_core",
)


class StepByStepModel(models.EncoderDecoderModel):
    """Trains on label and rationale; predicts and scores only the label.

    `predict_batch`, `predict_batch_with_aux` and `score_batch` are T5X's. They read the label
    stream, which has T5X's names, so the rationale costs nothing at inference.
    """

    FEATURE_CONVERTER_CLS = StepByStepFeatureConverter

    def __init__(
        self,
        module: Any,
        input_vocabulary: Any,
        output_vocabulary: Any,
        optimizer_def: Any,
        decode_fn: Callable[..., Any] = greedy_decode,
        feature_converter_cls: Callable[..., Any] | None = None,
        alpha: float = 0.5,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        default_decoder_params: models.DecoderParams | None = None,
    ) -> None:
        """All arguments are for gin.

        Args:
            module: a Flax module as T5X's `EncoderDecoderModel` takes it.
            input_vocabulary: of the inputs.
            output_vocabulary: of the targets.
            optimizer_def: T5X's optimizer.
            decode_fn: predicts labels; greedy by default, as in the paper's code.
            feature_converter_cls: None = `StepByStepFeatureConverter`.
            alpha: weight of the label stream in [0, 1]. 1 is standard finetuning: the rationale
                stream is not computed.
            label_smoothing: see `ObjectiveConfig`.
            z_loss: see `ObjectiveConfig`.
            default_decoder_params: see T5X.

        Raises:
            InputError: `alpha`, `label_smoothing` or `z_loss` is out of range.
        """
        self._objective = ObjectiveConfig(
            alpha=alpha, z_loss=z_loss, label_smoothing=label_smoothing
        )
        self._streams = (LABEL,) if alpha == 1.0 else STREAMS
        self._global_rows: int | None = None
        super().__init__(
            module=module,
            input_vocabulary=input_vocabulary,
            output_vocabulary=output_vocabulary,
            optimizer_def=optimizer_def,
            decode_fn=decode_fn,
            feature_converter_cls=feature_converter_cls,
            label_smoothing=label_smoothing,
            z_loss=z_loss,
            default_decoder_params=default_decoder_params,
        )

    def get_initial_variables(
        self,
        rng: jax.Array,
        input_shapes: Mapping[str, Any],
        input_types: Mapping[str, Any] | None = None,
    ) -> Any:
        """As in T5X; also records the rows of the global batch, so `loss_fn` detects a part."""
        self._global_rows = input_shapes["encoder_input_tokens"][0]
        return super().get_initial_variables(rng, input_shapes, input_types)

    def loss_fn(
        self, params: Any, batch: Batch, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, dict[str, clu_metrics.Metric]]:
        """The combined loss of a batch, and metrics.

        Args:
            params: parameters.
            batch: of `StepByStepFeatureConverter`. After `with_loss_factors` it may be a part of
                the global batch; the losses of all parts then add up to the global loss.
            dropout_rng: None = no dropout.

        Returns:
            The loss, and metrics: ``loss``; for each stream ``s`` ``s_loss`` (nats a token) and
            ``s_accuracy`` (of tokens, teacher-forced; a tie counts as correct); ``accuracy`` (the
            label stream's, as T5X computes it); and T5X's metrics of time and padding.

        Raises:
            InputError: in training, the batch is a part without loss factors, as T5X's own trainer
                passes it with ``num_microbatches``.
        """
        self._refuse_part(batch, dropout_rng)
        parts = {stream: stream_features(batch, stream) for stream in self._streams}
        logits = self._stream_logits(params, parts, dropout_rng)
        sums = {
            stream: cross_entropy_sums(
                logits[stream],
                part["decoder_target_tokens"],
                part["decoder_loss_weights"],
                self._objective,
            )
            for stream, part in parts.items()
        }
        if _factor_name(LABEL) in batch:
            factors = {stream: batch[_factor_name(stream)][0] for stream in parts}
        else:
            factors = self._factors(batch)
        loss = sum((factors[stream] * sums[stream].loss for stream in parts), start=jnp.float32(0))
        return loss, self._step_metrics(loss, sums, parts, logits[LABEL])

    def with_loss_factors(self, batch: Batch) -> dict[str, jax.Array]:
        """The global batch with each stream's loss factor, so that `loss_fn` can take its parts.

        Returns:
            The batch, and for each stream float32 [rows]: its weight in the loss divided by its
            token weight in the global batch, the same in every row.
        """
        rows = batch["encoder_input_tokens"].shape[0]
        factors = self._factors(batch)
        return {
            **batch,
            **{_factor_name(stream): jnp.full(rows, factor) for stream, factor in factors.items()},
        }

    def _factors(self, batch: Batch) -> dict[str, jax.Array]:
        weights = {
            stream: jnp.sum(batch[f"{PREFIXES[stream]}decoder_loss_weights"])
            for stream in self._streams
        }
        return coefficients(weights, self._objective.alpha)

    def _refuse_part(self, batch: Batch, dropout_rng: jax.Array | None) -> None:
        rows = batch["encoder_input_tokens"].shape[0]
        whole = self._global_rows
        if dropout_rng is None or _factor_name(LABEL) in batch or whole is None or rows >= whole:
            return
        raise InputError(
            f"Trainer.num_microbatches: got {rows} of a batch's {whole} rows, but T5X's trainer "
            "needs the whole batch for an exact loss. Set train.trainer_cls = @StepByStepTrainer "
            "(stepdistill_jax.t5x.trainer), or num_microbatches = None."
        )

    def _stream_logits(
        self, params: Any, parts: Mapping[str, Batch], dropout_rng: jax.Array | None
    ) -> dict[str, jax.Array]:
        """Float32 [B, T, V] of each stream."""
        rngs = dict.fromkeys(("encoder", *parts))
        if dropout_rng is not None:
            rngs = {use: jax.random.fold_in(dropout_rng, i) for i, use in enumerate(rngs)}
        if not self._can_share_encoder(parts):
            return {
                stream: self._compute_logits(params, part, rngs[stream])
                for stream, part in parts.items()
            }
        # The streams' rows are interleaved, [B, streams, L] -> [B * streams, L]: each device
        # encodes the rows that it holds, without communication.
        both: dict[str, Any] = {
            name: jnp.stack([part[name] for part in parts.values()], axis=1)
            for name in ("encoder_input_tokens", "encoder_segment_ids", "encoder_positions")
            if name in parts[LABEL]
        }
        both = {name: value.reshape(-1, value.shape[-1]) for name, value in both.items()}
        encoded = self._apply(params, self.module.encode, rngs["encoder"], **both)
        encoded = encoded.reshape(-1, len(parts), *encoded.shape[1:])
        return {
            stream: self._apply(
                params,
                self.module.decode,
                rngs[stream],
                encoded=encoded[:, i],
                **{name: value for name, value in part.items() if name != "decoder_loss_weights"},
            )
            for i, (stream, part) in enumerate(parts.items())
        }

    def _can_share_encoder(self, parts: Mapping[str, Batch]) -> bool:
        """Whether one encoder pass serves all streams: equal lengths, and the module allows it."""
        lengths = {part["encoder_input_tokens"].shape for part in parts.values()}
        return (
            len(lengths) == 1
            and "encoder_segment_ids" in _parameters(getattr(self.module, "encode", None))
            and {"encoder_segment_ids", "decoder_segment_ids"}
            <= _parameters(getattr(self.module, "decode", None))
        )

    def _apply(
        self, params: Any, method: Callable[..., Any], rng: jax.Array | None, **features: Any
    ) -> Any:
        # Modules with relative positions have no arguments for absolute positions.
        accepted = {name: value for name, value in features.items() if name in _parameters(method)}
        return self.module.apply(
            {"params": params},
            **accepted,
            enable_dropout=rng is not None,
            rngs=None if rng is None else {"dropout": rng},
            method=method,
        )

    def _step_metrics(
        self,
        loss: jax.Array,
        sums: Mapping[str, StreamSums],
        parts: Mapping[str, Batch],
        label_logits: jax.Array,
    ) -> dict[str, clu_metrics.Metric]:
        label = parts[LABEL]
        filled = {
            f"{PREFIXES[stream]}{coder}": part.get(f"{coder}_segment_ids", part[tokens] > 0)
            for stream, part in parts.items()
            for coder, tokens in (
                ("encoder", "encoder_input_tokens"),
                ("decoder", "decoder_target_tokens"),
            )
        }
        metrics = models.compute_base_metrics(
            logits=label_logits,
            targets=label["decoder_target_tokens"],
            mask=label["decoder_loss_weights"] > 0,
            loss=loss,
            segment_ids=filled,
        )
        metrics = {name: value for name, value in metrics.items() if name not in _OF_ONE_STREAM}
        for stream, total in sums.items():
            metrics[f"{stream}_loss"] = clu_metrics.Average(total=total.loss, count=total.weight)
            metrics[f"{stream}_accuracy"] = clu_metrics.Average(
                total=total.correct, count=total.weight
            )
        return metrics


def _factor_name(stream: str) -> str:
    return f"{stream}_loss_factor"


def _parameters(method: Callable[..., Any] | None) -> set[str]:
    return set() if method is None else set(inspect.signature(method).parameters)
