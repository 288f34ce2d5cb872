"""Hugging Face T5 checkpoints: their files, model configuration, tokenizer and arrays.

T5 1.0 (``t5-*``), T5 1.1 (``google/t5-v1_1-*``), FLAN-T5 (``google/flan-t5-*``), mT5
(``google/mt5-*``) and ByT5 (``google/byt5-*``), from a folder or the hub, as safetensors or
PyTorch's ``.bin``, in one file or in shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from stepdistill_jax import hub, storage
from stepdistill_jax.checkpoint.names import HF_ALIASES, HF_IGNORED, HF_TIED_ALIASES, Form
from stepdistill_jax.checkpoint.weight_files import (
    PytorchFile,
    SafetensorsFile,
    WeightFile,
    damaged,
)
from stepdistill_jax.data import added_tokens
from stepdistill_jax.data.added_tokens import TOKENIZER_CONFIG, TOKENIZER_JSON, read_json
from stepdistill_jax.data.vocabulary import (
    SENTENCEPIECE_FILE,
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    is_published_t5,
)
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.spec import EOS_ID, PAD_ID, InputError

CONFIG = "config.json"
GENERATION_CONFIG = "generation_config.json"
TOKENIZERS = (SENTENCEPIECE_FILE, TOKENIZER_JSON)
INDEX = ".index.json"
SAFETENSORS = ("model.safetensors", f"model.safetensors{INDEX}")
PYTORCH = ("pytorch_model.bin", f"pytorch_model.bin{INDEX}")
_FILES = "config.json, spiece.model and model.safetensors (or all its shards and their index)"

# Key of config.json -> field of T5Config.
SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "emb_dim",
    "num_heads": "num_heads",
    "d_kv": "head_dim",
    "d_ff": "mlp_dim",
    "num_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
    "relative_attention_num_buckets": "relpos_buckets",
    "relative_attention_max_distance": "relpos_max_distance",
}
# transformers' defaults for keys that a config.json leaves out.
DEFAULTS = {
    "relative_attention_num_buckets": 32,
    "relative_attention_max_distance": 128,
    "feed_forward_proj": "relu",
    "tie_word_embeddings": True,
    "layer_norm_epsilon": 1e-6,
}
# `feed_forward_proj` -> MLP_ACTIVATIONS. Gated "gelu" is the tanh approximation in both.
ACTIVATIONS = {
    "relu": ("relu",),
    "gated-relu": ("relu", "linear"),
    "gated-gelu": ("gelu", "linear"),
    "gated-silu": ("silu", "linear"),
}
# Field of T5Config -> its macro, where that is not the field's name in capitals.
MACROS = {"logits_via_embedding": "TIED_EMBEDDINGS"}
# Ids that decide what a model reads and where its texts end; `None` leaves the choice to us.
_IDS: dict[str, tuple[Any, ...]] = {
    "pad_token_id": (PAD_ID, None),
    "eos_token_id": (EOS_ID, [EOS_ID], None),
    "decoder_start_token_id": (PAD_ID, None),
}
# Key of config.json -> the values with which transformers computes what this package computes.
# Keys that are neither here nor in SIZES change no logit and no greedy token.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    **_IDS,
    "model_type": ("t5", "mt5"),
    "feed_forward_proj": tuple(ACTIVATIONS),
    "layer_norm_epsilon": (1e-6,),
    "is_encoder_decoder": (True,),
    "is_decoder": (False,),
    "tie_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
}
# Generation settings, with the values of greedy decoding; older files hold them in config.json.
_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "bad_words_ids": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
}
# Rows of an array that are compared at once.
_ROWS = 4096


def is_checkpoint(folder: epath.Path) -> bool:
    """Whether a folder holds a Hugging Face model."""
    return (folder / CONFIG).is_file()


def model_fields(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of `T5Config` that a ``config.json`` decides.

    transformers 5 writes ``tie_word_embeddings: true`` for every T5. There only
    ``scale_decoder_outputs`` distinguishes T5 1.0 from 1.1. mT5 never scales.

    Raises:
        InputError: the model is not a T5 that this package implements.
    """
    config = _with_defaults(config)
    _refuse_unsupported(config, _SUPPORTED, where)
    missing = [key for key in SIZES if not isinstance(config.get(key), int)]
    if missing:
        raise InputError(
            f"{where}: missing or not an integer: {', '.join(missing)}. Download the file again."
        )
    projection = config["feed_forward_proj"]
    gate, _, activation = projection.rpartition("-")
    activation = "gelu_new" if activation == "gelu" else activation
    # transformers derives both from feed_forward_proj, but a stored value wins.
    derived = {"dense_act_fn": (activation, None), "is_gated_act": (gate == "gated", None)}
    _refuse_unsupported(config, derived, where)
    fields = {field: config[key] for key, field in SIZES.items()}
    fields["mlp_activations"] = ACTIVATIONS[projection]
    tied = config["tie_word_embeddings"] is not False
    scaled = config.get("scale_decoder_outputs", tied) is not False
    fields["logits_via_embedding"] = config["model_type"] == "t5" and scaled
    return fields


def _with_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """A ``config.json`` with the keys that transformers adds."""
    more = {"feed_forward_proj": "gated-gelu"} if config.get("model_type") == "mt5" else {}
    config = {**DEFAULTS, **more, "model_type": None, "is_encoder_decoder": True, **config}
    if config.get("num_decoder_layers") is None:
        config["num_decoder_layers"] = config.get("num_layers")
    return config


def _refuse_unsupported(
    config: Mapping[str, Any], supported: Mapping[str, tuple[Any, ...]], where: str
) -> None:
    for key, values in supported.items():
        if key in config and config[key] not in values:
            listed = " or ".join(repr(value) for value in values if value is not None)
            raise InputError(
                f"{where}: unsupported {key}: got {config[key]!r}, expected {listed or 'no value'}."
                " Use another T5, mT5 or ByT5 checkpoint."
            )


def _warn_of_generation(config: Mapping[str, Any], where: str) -> None:
    """Names what makes transformers' `generate` write other texts than this package's decoding."""
    others = [
        f"{key}={config[key]!r}"
        for key, greedy in _GREEDY.items()
        if config.get(key, greedy) not in (greedy, None)
    ]
    if others:
        logging.warning(
            "%s: not used: %s; here decoding is greedy, so texts may differ from transformers'",
            *(where, ", ".join(others)),
        )


class HFCheckpoint:
    """A Hugging Face checkpoint; a `fill.CheckpointReader`.

    Attributes:
        form: ``hf``.
        where: its folder or hub name.
        fields: the fields of `T5Config` that its ``config.json`` decides.
        shapes: key -> shape of every array that a T5 reads.
    """

    def __init__(self, name: str) -> None:
        """Finds the files and reads all shapes; downloads what the hub's local cache lacks.

        Args:
            name: a folder, or ``hf:`` and a folder or ``OWNER/NAME`` on the hub.

        Raises:
            InputError: a file is missing or damaged, or the model is not a T5.
        """
        self.form: Form = "hf"
        self.where = name
        self._place = _Place(name)
        path = self._place.find((CONFIG,))
        config = read_json(path)
        self.fields = model_fields(config, str(path))
        path = self._place.optional(GENERATION_CONFIG)
        generation = read_json(path) if path else {}
        _refuse_unsupported(generation, _IDS, str(path))
        _warn_of_generation({**config, **generation}, name)
        self._files = self._place.weights()
        self._shared: dict[str, str] = {}
        self.shapes = {k: file.shapes()[k] for k, file in self._files.items()}
        aliases = HF_TIED_ALIASES if self.fields["logits_via_embedding"] else HF_ALIASES
        for alias, key in aliases.items():
            if {alias, key} <= self.shapes.keys():
                self._check_alias(alias, key)
                del self.shapes[alias]
        for key in HF_IGNORED & self.shapes.keys():
            del self.shapes[key]
        # transformers 5 saves T5 1.1 and mT5 without the output matrix where it equals `shared`.
        tied = _with_defaults(config)["tie_word_embeddings"] is not False
        if tied and not self.fields["logits_via_embedding"]:
            self._share("lm_head.weight", "shared.weight")

    def read(self, key: str, index: tuple[Any, ...]) -> np.ndarray:
        """See `fill.CheckpointReader`."""
        key = self._shared.get(key, key)
        return self._files[key].read(key, index)

    def _share(self, key: str, source: str) -> None:
        """Reads `source` where the checkpoint has no array `key`."""
        if key not in self.shapes and source in self.shapes:
            self.shapes[key] = self.shapes[source]
            self._shared[key] = source

    def check_model(self, model: T5Config) -> None:
        """Compares ``config.json`` with the run's model.

        Raises:
            InputError: all macros that differ, with both values.
        """
        differing = [
            f"{MACROS.get(field, field.upper())}={getattr(model, field)!r}, but the checkpoint has "
            f"{value!r}"
            for field, value in self.fields.items()
            if getattr(model, field) != value
        ]
        if differing:
            raise InputError(
                f"INITIAL_CHECKPOINT={self.where!r} is another model: {'; '.join(differing)}. "
                "Set these macros to the checkpoint's values, or add the gin file of models/ that "
                "describes it."
            )

    def check_vocabulary(self, vocabulary: Vocabulary, name: str) -> None:
        """Compares the checkpoint's tokenizer with the vocabulary of the run.

        Args:
            vocabulary: of the run.
            name: VOCABULARY, for the message.

        Raises:
            InputError: they differ, or the checkpoint has no tokenizer or one with added tokens.
        """
        added_tokens.refuse(f"INITIAL_CHECKPOINT={self.where!r}", self._place.optional)
        if self._reads_bytes():
            if isinstance(vocabulary, ByteVocabulary):
                return
            raise InputError(
                f"VOCABULARY={name!r} is not the tokenizer of INITIAL_CHECKPOINT={self.where!r}, "
                "which reads bytes. Set VOCABULARY='bytes'."
            )
        theirs = self._pieces()
        ours = vocabulary.pieces() if isinstance(vocabulary, SentencePieceVocabulary) else []
        if ours and ours == theirs[: len(ours)]:
            return
        pairs = enumerate(zip(ours, theirs, strict=False))
        first = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
        raise InputError(
            f"VOCABULARY={name!r} is not the tokenizer of INITIAL_CHECKPOINT={self.where!r}: "
            f"{len(ours):,} and {len(theirs):,} pieces, which differ from id {first} on. "
            f"Set VOCABULARY={self.where!r}, or INITIAL_CHECKPOINT=None to train from scratch."
        )

    def _reads_bytes(self) -> bool:
        """Whether the tokenizer is ByT5's, which has no file of pieces."""
        path = self._place.optional(TOKENIZER_CONFIG)
        return path is not None and read_json(path).get("tokenizer_class") == "ByT5Tokenizer"

    def _pieces(self) -> list[str]:
        path = self._place.find(TOKENIZERS)
        if path.name == TOKENIZERS[0]:
            model = SentencePieceVocabulary(path.read_bytes(), 0, where=str(path))
            return model.pieces()
        tokenizer = read_json(path)
        try:
            return [piece for piece, _ in tokenizer["model"]["vocab"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{path}: not the tokenizer.json of a SentencePiece model. Put spiece.model beside "
                "it."
            ) from error

    def _check_alias(self, alias: str, key: str) -> None:
        """Refuses a checkpoint whose two names of one array hold different values."""
        shape = self.shapes[key]
        same = shape == self.shapes[alias]
        for start in range(0, shape[0], _ROWS) if same else ():
            rows = (slice(start, min(start + _ROWS, shape[0])), slice(0, shape[1]))
            # NaN is refused when the parameters are read, with a message of its own.
            same = same and np.array_equal(
                self.read(alias, rows), self.read(key, rows), equal_nan=True
            )
        if not same:
            raise InputError(
                f"{self.where}: {alias} differs from {key}, but config.json declares them to be "
                "one array. Correct tie_word_embeddings or scale_decoder_outputs in config.json."
            )


class _Place:
    """Finds a checkpoint's files by name, in a folder or on the hub."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._repository = name.removeprefix(hub.PREFIX)
        folder = epath.Path(self._repository).expanduser()
        self._folder = folder if folder.is_dir() or not name.startswith(hub.PREFIX) else None

    def find(self, candidates: Sequence[str]) -> epath.Path:
        """The first of `candidates` that there is.

        Raises:
            InputError: there is none.
        """
        if self._folder is None:
            remedy = "set INITIAL_CHECKPOINT and VOCABULARY to it"
            return hub.find("INITIAL_CHECKPOINT", self._repository, candidates, remedy)
        for candidate in candidates:
            if (self._folder / candidate).is_file():
                return self._folder / candidate
        raise InputError(
            f"INITIAL_CHECKPOINT={self._name!r}: {self._folder} has no {' or '.join(candidates)}. "
            f"Put {_FILES} there."
        )

    def optional(self, name: str) -> epath.Path | None:
        """A file that a checkpoint need not have."""
        if self._folder is not None:
            return self._folder / name if (self._folder / name).is_file() else None
        if is_published_t5(self._name):  # Its files are known: none changes a number.
            return None
        return hub.optional("INITIAL_CHECKPOINT", self._repository, name)

    def weights(self) -> dict[str, WeightFile]:
        """Key -> the file that holds the array.

        Raises:
            InputError: a file is missing or damaged.
        """
        path = self.find((*SAFETENSORS, *PYTORCH))
        kind = SafetensorsFile if path.name in SAFETENSORS else PytorchFile
        if not path.name.endswith(INDEX):
            file: WeightFile = kind(storage.on_disk(path))
            return dict.fromkeys(file.shapes(), file)
        index = read_json(path).get("weight_map")
        if not isinstance(index, dict):
            raise damaged(path, "no weight_map")
        for key, name in index.items():
            # A shard lies beside its index: nothing else on this machine is read.
            if not isinstance(name, str) or name != epath.Path(name).name or name in ("", ".."):
                raise damaged(path, f"{key} is said to be in {name!r}, expected a file's name")
        shards: dict[str, WeightFile] = {
            name: kind(storage.on_disk(self.find((name,)))) for name in set(index.values())
        }
        missing = [key for key, shard in index.items() if key not in shards[shard].shapes()]
        if missing:
            first = missing[0]
            raise damaged(path, f"{len(missing)} arrays are missing, as {first} in {index[first]}")
        return {key: shards[shard] for key, shard in index.items()}
