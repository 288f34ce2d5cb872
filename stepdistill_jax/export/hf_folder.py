"""A Hugging Face folder of a model: config, weights and tokenizer, as transformers reads them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.checkpoint import fill, hf
from stepdistill_jax.checkpoint.names import Shape, bindings, stored_shapes
from stepdistill_jax.data.vocabulary import ByteVocabulary, SentencePieceVocabulary, Vocabulary
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.spec import EOS_ID, PAD_ID, UNK_ID, InputError

PyTree = Any

GENERATION_CONFIG = "generation_config.json"
# Larger models are cut into files of at most this.
SHARD_BYTES = 5 * 10**9
_DTYPE = np.dtype(np.float32)
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def config_json(model: T5Config) -> dict[str, Any]:
    """``config.json`` of a model.

    For an untied model it says ``tie_word_embeddings: false``, from which transformers 4 and 5
    both tell that the decoder's output is not scaled.

    Raises:
        InputError: transformers' T5 has no such MLP.
    """
    names = {activations: name for name, activations in hf.ACTIVATIONS.items()}
    if model.mlp_activations not in names:
        raise InputError(
            f"MLP_ACTIVATIONS={model.mlp_activations!r}: transformers' T5 knows "
            f"{', '.join(map(repr, names))}; such a model can be taken out with --to=t5x"
        )
    return {
        "architectures": ["T5ForConditionalGeneration"],
        "model_type": "t5",
        "is_encoder_decoder": True,
        **{key: getattr(model, field) for key, field in hf.SIZES.items()},
        "feed_forward_proj": names[model.mlp_activations],
        "tie_word_embeddings": model.logits_via_embedding,
        "dropout_rate": model.dropout_rate,
        "layer_norm_epsilon": hf.DEFAULTS["layer_norm_epsilon"],
        "initializer_factor": 1.0,
        "dtype": _DTYPE.name,
        "use_cache": True,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": PAD_ID,
    }


def generation_json(max_new_tokens: int) -> dict[str, Any]:
    """``generation_config.json``: greedy, as this package evaluates."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": PAD_ID,
    }


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes one JSON file, indented."""
    records.write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_weights(folder: epath.Path, params: PyTree, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes ``model.safetensors``, or shards and their index, one array after the other.

    Args:
        folder: exists.
        params: tree of float32 arrays, or of what becomes one when it is read.
        shard_bytes: the most bytes of arrays in a file.
    """
    shapes = stored_shapes(bindings(params, "hf"))
    shards = list(_shards(shapes, shard_bytes))
    arrays = fill.arrays(params, "hf")
    if len(shards) == 1:
        _write_safetensors(folder / hf.SAFETENSORS[0], shards[0], arrays)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        _write_safetensors(folder / name, shard, arrays)
        weight_map |= dict.fromkeys(shard, name)
    total = sum(map(_nbytes, shapes.values()))
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / hf.SAFETENSORS[1], index)


def _nbytes(shape: Shape) -> int:
    return int(np.prod(shape, dtype=np.int64)) * _DTYPE.itemsize


def _shards(shapes: Mapping[str, Shape], most: int) -> Iterator[dict[str, Shape]]:
    """Cuts the arrays, in order, into files; an array larger than `most` has one of its own."""
    shard: dict[str, Shape] = {}
    size = 0
    for key, shape in shapes.items():
        if shard and size + _nbytes(shape) > most:
            yield shard
            shard, size = {}, 0
        shard[key] = shape
        size += _nbytes(shape)
    yield shard


def _write_safetensors(
    path: epath.Path, shapes: Mapping[str, Shape], arrays: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Takes the arrays of one file from `arrays`; the library's own writer wants them all at once.

    The format: the header's length in 8 bytes, little endian; the header, JSON of each array's
    dtype, shape and place; the arrays.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for key, shape in shapes.items():
        stop = start + _nbytes(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, stop]}
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for expected in shapes:
            key, array = next(arrays)
            assert key == expected
            file.write(np.ascontiguousarray(array, "<f4").data)


def write_tokenizer(folder: epath.Path, vocabulary: Vocabulary, max_length: int) -> None:
    """Writes what `AutoTokenizer` needs to give the ids that `vocabulary` gives.

    Texts that spell out a special token other than ``</s>`` are the exception, and, with a
    word-level vocabulary, several unknown words on end.

    Args:
        folder: exists.
        vocabulary: T5's or one like it (``spiece.model``), bytes (ByT5's tokenizer), or a
            word-level one (``tokenizer.json`` besides).
        max_length: tokens of the longest input, EOS included.

    Raises:
        InputError: transformers has no tokenizer that is like it.
    """
    config: dict[str, Any] = {**_SPECIAL, "model_max_length": max_length}
    if isinstance(vocabulary, ByteVocabulary):
        config |= {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
        # By default it would take the spaces around </s> away.
        config["added_tokens_decoder"] = {
            str(token): {"content": content, "special": True, "lstrip": False, "rstrip": False}
            for token, content in ((PAD_ID, "<pad>"), (EOS_ID, "</s>"), (UNK_ID, "<unk>"))
        }
    elif isinstance(vocabulary, SentencePieceVocabulary):
        (folder / hf.TOKENIZERS[0]).write_bytes(vocabulary.model)
        kind = _model_type(vocabulary)
        if kind == "UNIGRAM":
            sentinels = vocabulary.size - len(vocabulary.pieces())
            config |= {"tokenizer_class": "T5Tokenizer", "extra_ids": sentinels}
        elif kind == "WORD":
            (folder / hf.TOKENIZERS[1]).write_text(_word_level(vocabulary))
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        else:
            raise InputError(
                f"VOCABULARY is a SentencePiece model of type {kind}, which transformers' T5 "
                "cannot read (UNIGRAM, as T5's, it can); take the model out with --to=t5x"
            )
    write_json(folder / hf.TOKENIZER_CONFIG, config)


def _proto(vocabulary: SentencePieceVocabulary) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    # The class is made when the module is imported.
    proto = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined]
    return proto.FromString(vocabulary.model)


def _model_type(vocabulary: SentencePieceVocabulary) -> str:
    spec = _proto(vocabulary).trainer_spec
    name: str = spec.ModelType.Name(spec.model_type)
    return name


def _word_level(vocabulary: SentencePieceVocabulary) -> str:
    """``tokenizer.json`` of a word-level SentencePiece model."""
    import tokenizers
    from tokenizers import decoders, normalizers, pre_tokenizers, processors

    pieces = {piece: token for token, piece in enumerate(vocabulary.pieces())}
    unknown = vocabulary.pieces()[UNK_ID]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(pieces, unk_token=unknown))
    tokenizer.normalizer = normalizers.Precompiled(
        _proto(vocabulary).normalizer_spec.precompiled_charsmap
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    eos = _SPECIAL["eos_token"]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=["$A", eos], special_tokens=[(eos, EOS_ID)]
    )
    return tokenizer.to_str()


def check_tokenizer(folder: epath.Path, vocabulary: Vocabulary, texts: Iterable[str]) -> int:
    """Compares what `AutoTokenizer` makes of texts with what the model was trained on.

    Returns:
        How many texts were compared.

    Raises:
        InputError: the ids of a text differ.
    """
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(str(folder))
    count = 0
    for text in texts:
        count += 1
        ours = [*vocabulary.encode(text), EOS_ID]
        theirs = tokenizer(text)["input_ids"]
        if theirs != ours:
            raise InputError(
                f"transformers makes other tokens of VOCABULARY than this package: {text!r} is "
                f"{theirs} there and {ours} here; take the model out with --to=t5x"
            )
    return count
