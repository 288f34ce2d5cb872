"""The released code's train step and label evaluation in PyTorch, as a reference.

It includes what the released code leaves to Hugging Face's trainer: two forward passes a step
(label, rationale), each a mean over the target tokens of its batch, combined as
``alpha * label + (1 - alpha) * rationale``; one backward pass; gradients clipped by their global
norm; AdamW with a linear schedule; every batch padded to its longest pair; bfloat16 by autocast
over float32 parameters; labels decoded by `generate`.

PyTorch and transformers are imported inside functions: the rest of this package needs neither.
"""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from stepdistill_jax.checkpoint.fill import arrays
from stepdistill_jax.checkpoint.hf import ACTIVATIONS, SIZES
from stepdistill_jax.checkpoint.names import HF_ALIASES, HF_TIED_ALIASES
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import EOS_ID, LABEL, PAD_ID, RATIONALE, STREAMS, InputError

# Target ids that Hugging Face's loss ignores.
IGNORED = -100

Pair = Mapping[str, Any]
# Stream -> `input_ids`, `attention_mask` and `labels`, int64 tensors [B, longest].
Batch = dict[str, dict[str, Any]]


def check_supported(config: RunConfig) -> None:
    """Checks that the recipe can make a run.

    Raises:
        InputError: a setting that the recipe does not have.
    """
    for macro, value, expected in (
        ("METHOD", config.method, "step_by_step"),
        ("ALPHA_END", config.objective.alpha_end, None),
        ("EVAL_MODE", config.eval.mode, "decode"),
        ("OPTIMIZER", config.optimizer.name, "adamw"),
        ("SCHEDULE", config.optimizer.schedule, "linear"),
        ("Z_LOSS", config.objective.z_loss, 0.0),
        ("LABEL_SMOOTHING", config.objective.label_smoothing, 0.0),
    ):
        if value != expected:
            raise InputError(
                f"{macro}={value!r}: the released recipe does not support it, expected "
                f"{expected!r}. Set {macro}={expected!r}, or omit --against."
            )
    if config.model.mlp_activations not in ACTIVATIONS.values():
        raise InputError(
            f"MLP_ACTIVATIONS={config.model.mlp_activations!r}: Hugging Face's T5 supports "
            f"{', '.join(map(str, ACTIVATIONS.values()))}. Set one of these, or omit --against."
        )


def require_torch() -> None:
    """Raises `InputError` if PyTorch or transformers is not installed."""
    missing = [name for name in ("torch", "transformers") if not importlib.util.find_spec(name)]
    if missing:
        raise InputError(
            f"--against=recipe: not installed: {' and '.join(missing)}. Run pip install "
            "'stepdistill-jax[test]'."
        )


class OfficialRecipe:
    """A Hugging Face T5 with its optimizer and schedule."""

    def __init__(
        self, config: RunConfig, params: Any, device: str = "cpu", threads: int | None = None
    ) -> None:
        """Builds the model with our parameters.

        Args:
            config: the run.
            params: our parameter tree, stacked or unrolled, all addressable by this process.
            device: PyTorch's name of the device.
            threads: CPU threads of PyTorch in this process; None = PyTorch's default.

        Raises:
            InputError: the recipe does not support the run, or PyTorch is not installed.
        """
        check_supported(config)
        require_torch()
        import torch
        from transformers import get_linear_schedule_with_warmup

        if threads is not None:
            torch.set_num_threads(threads)
        torch.manual_seed(config.seed)
        self.config = config
        self.device = device
        self.model = _model(config.model, params).to(device)
        # AdamW's kernel and weight decay as in Hugging Face's trainer.
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
        """One batch, each stream padded to its longest pair.

        Args:
            pairs: the four features as in a token cache, and ``s_weight`` of each stream: a target
                of weight 0 is ignored by the loss, as in our objective.
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
            precise: also report the gradient norm summed in float64. PyTorch on a CPU sums float32
                squares sequentially: its norm, which the recipe clips by, is 0.01% too small for 2
                million elements and 0.3% for 25 million.

        Returns:
            Scalar tensors under our train step's names: ``loss``, ``label_loss``,
            ``rationale_loss`` (nats a token) and ``grad_norm`` (PyTorch's, before clipping); with
            `precise` also ``precise_grad_norm``.
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
        """Greedy labels of one batch of inputs, padded to the longest input.

        Args:
            inputs: token ids of each input, EOS included.
            max_length: maximum tokens of a label, EOS included.

        Returns:
            The tokens of each label, without EOS.
        """
        import torch

        self.model.eval()
        ids, mask = _padded(inputs, PAD_ID)
        with torch.inference_mode(), self._autocast():
            output = self.model.generate(
                input_ids=self._tensor(ids),
                attention_mask=self._tensor(mask),
                max_new_tokens=max_length,
                num_beams=1,
                do_sample=False,
            )
        rows: list[list[int]] = output[:, 1:].tolist()
        return [row[: row.index(EOS_ID)] if EOS_ID in row else row for row in rows]

    def arrays(self) -> dict[str, np.ndarray]:
        """The parameters under Hugging Face's names, like `checkpoint.fill.arrays`."""
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
        # transformers scales the decoder's output if this is set.
        "tie_word_embeddings": model.logits_via_embedding,
        "decoder_start_token_id": PAD_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
    }
    config = transformers.T5Config(**settings)
    network = transformers.T5ForConditionalGeneration(config)
    if not model.logits_via_embedding:
        # transformers 5 ties the output matrix and the embedding regardless of the config.
        network.lm_head.weight = torch.nn.Parameter(torch.empty_like(network.lm_head.weight))
    # Copied, because JAX's arrays are read-only memory of JAX.
    state = {name: torch.from_numpy(value.copy()) for name, value in arrays(params, "hf")}
    state |= {alias: state[name] for alias, name in _aliases(model).items()}
    network.load_state_dict(state)
    return network


def _parameter_groups(model: Any, weight_decay: float) -> list[dict[str, Any]]:
    """All parameters decay except norms and biases, as in Hugging Face's trainer."""
    decaying: list[Any] = []
    rest: list[Any] = []
    for name, parameter in model.named_parameters():
        (rest if "norm" in name or "bias" in name else decaying).append(parameter)
    return [
        {"params": decaying, "weight_decay": weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]


def _padded(rows: Sequence[np.ndarray], filler: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows padded to the longest, and a mask of their tokens; both int64 [B, longest]."""
    lengths = np.array([len(row) for row in rows])
    mask = np.arange(lengths.max()) < lengths[:, None]
    padded = np.full(mask.shape, filler, np.int64)
    padded[mask] = np.concatenate(rows)
    return padded, mask.astype(np.int64)
