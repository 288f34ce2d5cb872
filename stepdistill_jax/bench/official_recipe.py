"""The released code's training step and label evaluation, rendered in PyTorch as a reference.

What the released code leaves to Hugging Face's trainer is spelled out here: two forward passes a
step (label, rationale), each a mean over its own batch's target tokens, combined as
``alpha * label + (1 - alpha) * rationale``; one backward pass; gradients clipped by their global
norm; AdamW under a linear schedule; every batch padded to its own longest row; bfloat16 by
autocast over float32 parameters; labels written by `generate`.

PyTorch and transformers are imported inside functions: nothing else of this package needs PyTorch.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.checkpoint.hf import ACTIVATIONS, SIZES
from stepdistill_jax.checkpoint.names import HF_ALIASES, HF_TIED_ALIASES
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.objective import ObjectiveConfig
from stepdistill_jax.optim import OptimizerConfig
from stepdistill_jax.spec import EOS_ID, LABEL, PAD_ID, RATIONALE, STREAMS, InputError

# Target ids that Hugging Face's loss leaves out.
IGNORED = -100

Pair = Mapping[str, Any]
# Stream -> `input_ids`, `attention_mask` and `labels`, int64 tensors [B, longest].
Batch = dict[str, dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class RecipeConfig:
    """The parts of a run that the recipe shares with ours.

    Attributes:
        model: sizes, variant, dropout and dtype; how layers are compiled means nothing here.
        objective: `alpha`.
        optimizer: AdamW's numbers, the schedule and clipping.
        train_steps: the schedule's length.
        seed: of dropout.

    Raises:
        InputError: a setting that the recipe does not have.
    """

    model: T5Config
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    train_steps: int
    seed: int = 0

    def __post_init__(self) -> None:
        wanted = {
            "OPTIMIZER": (self.optimizer.name, "adamw"),
            "SCHEDULE": (self.optimizer.schedule, "linear"),
            "Z_LOSS": (self.objective.z_loss, 0.0),
            "LABEL_SMOOTHING": (self.objective.label_smoothing, 0.0),
        }
        for macro, (value, theirs) in wanted.items():
            if value != theirs:
                raise InputError(
                    f"{macro}={value!r}: the released recipe has {theirs!r}; to compare with it, "
                    f"set {macro}={theirs!r}"
                )
        if self.model.mlp_activations not in ACTIVATIONS.values():
            raise InputError(
                f"MLP_ACTIVATIONS={self.model.mlp_activations!r} has no counterpart in Hugging "
                f"Face's T5; choose one of {', '.join(map(str, ACTIVATIONS.values()))}"
            )


def require_torch() -> None:
    """Raises InputError where PyTorch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"the released recipe runs on PyTorch, and {' and '.join(missing)} cannot be found; "
            "pip install 'stepdistill-jax[test]'"
        )


class OfficialRecipe:
    """A Hugging Face T5, its optimizer and schedule."""

    def __init__(
        self, config: RecipeConfig, params: Any, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Builds the model and gives it our parameters.

        Args:
            config: what to train.
            params: our parameter tree, stacked or unrolled, all addressable here.
            device: PyTorch's name of it.
            threads: CPU threads of this process's PyTorch; None leaves them as they are.

        Raises:
            InputError: PyTorch is not installed.
        """
        require_torch()
        import torch
        from transformers import get_linear_schedule_with_warmup

        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.model = _model(config.model, params).to(device)
        # The trainer's default kernel of AdamW, and its rule for what decays.
        self._optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.optimizer.weight_decay),
            lr=config.optimizer.learning_rate,
            betas=(config.optimizer.beta1, config.optimizer.beta2),
            eps=config.optimizer.epsilon,
            fused=True,
        )
        self._schedule = get_linear_schedule_with_warmup(
            self._optimizer, config.optimizer.warmup_steps, config.train_steps
        )

    def collate(self, pairs: Sequence[Pair]) -> Batch:
        """One batch, each stream padded to its own longest row.

        Args:
            pairs: the four features as in a token cache, and ``s_weight`` of each stream: a target
                of weight 0 is left out of the loss, as ours leaves it out.
        """
        batch = {}
        for stream in STREAMS:
            inputs, mask = _padded([pair[f"{stream}_inputs"] for pair in pairs], PAD_ID)
            targets = [
                pair[f"{stream}_targets"]
                if pair[f"{stream}_weight"]
                else np.full_like(pair[f"{stream}_targets"], IGNORED)
                for pair in pairs
            ]
            labels, _ = _padded(targets, IGNORED)
            batch[stream] = {
                "input_ids": self._tensor(inputs),
                "attention_mask": self._tensor(mask),
                "labels": self._tensor(labels),
            }
        return batch

    def step(self, batch: Batch, precise: bool = False) -> dict[str, Any]:
        """One update.

        Args:
            batch: of `collate`.
            precise: also report the gradient's norm summed in float64. PyTorch on a CPU sums
                float32 squares one after the other, and its norm, by which the recipe clips, is
                0.01% too small for 2 million elements and 0.3% for 25 million.

        Returns:
            Scalar tensors under our train step's names: ``loss``, ``label_loss``,
            ``rationale_loss`` (nats a token) and ``grad_norm`` (before clipping, as PyTorch has
            it); with `precise` also ``precise_grad_norm``.
        """
        import torch

        self.model.train()
        with self._autocast():
            losses = {s: self.model(**batch[s], use_cache=False).loss for s in STREAMS}
            alpha = self.config.objective.alpha
            loss = alpha * losses[LABEL] + (1.0 - alpha) * losses[RATIONALE]
        loss.backward()
        norms = {"precise_grad_norm": self._precise_norm()} if precise else {}
        norms["grad_norm"] = torch.nn.utils.clip_grad_norm_(
            self.model.parameters(), self.config.optimizer.clip_norm or math.inf
        )
        self._optimizer.step()
        self._schedule.step()
        self._optimizer.zero_grad()
        parts = {f"{stream}_loss": value.detach() for stream, value in losses.items()}
        return {"loss": loss.detach(), **parts, **norms}

    def generate(self, inputs: Sequence[np.ndarray], max_length: int) -> list[list[int]]:
        """Greedy labels of one batch of inputs, padded to the longest of them.

        Args:
            inputs: token ids of each row, EOS included.
            max_length: most tokens to write, EOS included.

        Returns:
            Each row's tokens up to and without EOS.
        """
        import torch

        self.model.eval()
        ids, mask = _padded(inputs, PAD_ID)
        with torch.inference_mode(), self._autocast():
            written = self.model.generate(
                input_ids=self._tensor(ids),
                attention_mask=self._tensor(mask),
                max_new_tokens=max_length,
                num_beams=1,
                do_sample=False,
            )
        rows: list[list[int]] = written[:, 1:].tolist()
        return [row[: row.index(EOS_ID)] if EOS_ID in row else row for row in rows]

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's names, each once, as `checkpoint.fill.arrays` has."""
        aliases = _aliases(self.config.model)
        return {
            name: tensor.detach().cpu().numpy().copy()
            for name, tensor in self.model.state_dict().items()
            if name not in aliases
        }

    def _precise_norm(self) -> Any:
        import torch

        norms = [
            torch.linalg.vector_norm(parameter.grad, dtype=torch.float64)
            for parameter in self.model.parameters()
        ]
        return torch.linalg.vector_norm(torch.stack(norms))

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        import torch

        if self.config.model.dtype == "float32":
            return contextlib.nullcontext()
        dtype = getattr(torch, self.config.model.dtype)
        return torch.autocast(self.device.partition(":")[0], dtype=dtype)

    def _tensor(self, array: np.ndarray) -> Any:
        import torch

        return torch.from_numpy(array).to(self.device)


def _aliases(model: T5Config) -> Mapping[str, str]:
    return HF_TIED_ALIASES if model.logits_via_embedding else HF_ALIASES


def _model(model: T5Config, params: Any) -> Any:
    import torch
    import transformers

    names = {activations: name for name, activations in ACTIVATIONS.items()}
    settings: dict[str, Any] = {key: getattr(model, field) for key, field in SIZES.items()}
    settings |= {
        "feed_forward_proj": names[model.mlp_activations],
        "dropout_rate": model.dropout_rate,
        # Decides in transformers whether the decoder's output is scaled, ...
        "tie_word_embeddings": model.logits_via_embedding,
        "decoder_start_token_id": PAD_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
    }
    config = transformers.T5Config(**settings)
    network = transformers.T5ForConditionalGeneration(config)
    if not model.logits_via_embedding:
        # ... but no longer whether the output matrix is the embedding: transformers 5 ties always.
        network.lm_head.weight = torch.nn.Parameter(torch.empty_like(network.lm_head.weight))
    # Copied: what JAX gives to read is its own memory.
    state = {name: torch.from_numpy(value.copy()) for name, value in arrays(params, "hf")}
    state |= {alias: state[name] for alias, name in _aliases(model).items()}
    network.load_state_dict(state)
    return network


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """Everything decays but norms and what is named bias, as in Hugging Face's trainer."""
    decaying: list[Any] = []
    rest: list[Any] = []
    for name, parameter in model.named_parameters():
        (rest if "norm" in name or "bias" in name else decaying).append(parameter)
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _padded(rows: Sequence[np.ndarray], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded to the longest, and 1 where they have tokens; both int64 [B, longest]."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, filler, np.int64)
    padded[mask] = np.concatenate(rows)
    return padded, mask.astype(np.int64)
