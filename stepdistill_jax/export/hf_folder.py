"""The Hugging Face folder of a run: config, weights, tokenizer and model card."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from stepdistill_jax import records
from stepdistill_jax.checkpoint import fill, hf
from stepdistill_jax.checkpoint.names import Shape, bindings, stored_shapes
from stepdistill_jax.data.added_tokens import TOKENIZER_CONFIG, TOKENIZER_JSON
from stepdistill_jax.data.vocabulary import (
    SENTENCEPIECE_FILE,
    ByteVocabulary,
    SentencePieceVocabulary,
    Vocabulary,
    load_vocabulary,
)
from stepdistill_jax.eval.runner import run_facts
from stepdistill_jax.export.checkpoints import OpenedCheckpoint
from stepdistill_jax.export.model_card import Student, model_card
from stepdistill_jax.model.config import T5Config
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.run.results import read_results
from stepdistill_jax.run.splits import label_tokens, tokens_before_label
from stepdistill_jax.spec import (
    CONFIG_FILE,
    EOS_ID,
    EVAL_FOLDER,
    PAD_ID,
    PREDICTIONS_FILE,
    PREFIXES,
    READER_METHODS,
    UNK_ID,
    InputError,
)

PyTree = Any

CARD = "README.md"
GENERATION_CONFIG = "generation_config.json"
# Maximum size of one weight file.
SHARD_BYTES = 5 * 10**9
_DTYPE = np.dtype(np.float32)
_SPECIAL = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
# Maximum number of predictions whose inputs test the exported tokenizer.
_TEST_ROWS = 2000


def write(folder: epath.Path, checkpoint: OpenedCheckpoint) -> str:
    """Writes a run's checkpoint as transformers reads it, with a model card.

    Returns:
        A short description of what was written.

    Raises:
        InputError: the checkpoint has no run, or transformers cannot represent its MLP or
            vocabulary.
    """
    run = checkpoint.run
    if run is None:
        raise InputError(
            f"{checkpoint.arrays.where}: --to=hf needs the vocabulary that the run's {CONFIG_FILE} "
            f"names, and there is no {CONFIG_FILE}. Use --to=orbax or --to=t5x."
        )
    vocabulary = load_vocabulary(run.tokens.vocabulary)
    run.check_vocabulary(vocabulary.size)
    max_label_length = tokens_before_label(run) + label_tokens(run)
    rationale_length = run.tokens.max_rationale_length if run.method in READER_METHODS else 0
    write_json(folder / hf.CONFIG, config_json(checkpoint.model))
    write_json(folder / GENERATION_CONFIG, generation_json(max_label_length))
    write_tokenizer(folder, vocabulary, run.tokens.max_input_length + rationale_length)
    rows = _predictions(run, checkpoint.step)
    label_prefix = PREFIXES[run.tokens.prefixes][0]
    texts = [*(label_prefix + _student_input(row) for row in rows), *_piece_texts(vocabulary)]
    count = check_tokenizer(folder, vocabulary, texts)
    write_weights(folder, checkpoint.params())
    student = _student(checkpoint, run, rows, max_label_length)
    records.write_atomic(folder / CARD, model_card(student, read_results(run.model_dir)))
    return (
        f"config, weights, tokenizer (equal ids on {count:,} texts) and {CARD} of step "
        f"{checkpoint.step}"
    )


def _student(
    checkpoint: OpenedCheckpoint,
    run: RunConfig,
    rows: Sequence[dict[str, Any]],
    max_label_length: int,
) -> Student:
    prefixes = run.tokens.prefix_texts()
    return Student(
        facts=run_facts(run),
        step=checkpoint.step,
        alpha=run.objective.alpha if len(run.streams) > 1 else None,
        alpha_end=run.objective.alpha_end,
        initial=run.initial_checkpoint,
        parameters=checkpoint.parameter_count,
        prefixes=[prefixes[stream] for stream in run.streams if stream in prefixes],
        max_input_length=run.tokens.max_input_length,
        max_label_length=max_label_length,
        marker=run.views.answer_marker if run.method == "single_task" else None,
        example=(_student_input(rows[0]), rows[0]["prediction"]) if rows else None,
    )


def _predictions(run: RunConfig, step: int) -> list[dict[str, Any]]:
    """The first predictions of this step on test, else validation; [] if neither was scored."""
    for split in ("test", "validation"):
        path = epath.Path(run.model_dir) / EVAL_FOLDER / split / str(step) / PREDICTIONS_FILE
        if path.exists():
            return [row for _, row in itertools.islice(records.read_jsonl(path), _TEST_ROWS)]
    return []


def _student_input(row: Mapping[str, Any]) -> str:
    """The student's input of a prediction, without the prefix."""
    return str(row.get("read", row["input"]))


def _piece_texts(vocabulary: Vocabulary) -> list[str]:
    """Texts that contain every piece of a vocabulary."""
    if not isinstance(vocabulary, SentencePieceVocabulary):
        return []
    ids = range(3, len(vocabulary.pieces()))
    return [vocabulary.decode_ids(ids[start : start + 16]) for start in range(0, len(ids), 16)]


def config_json(model: T5Config) -> dict[str, Any]:
    """``config.json`` of a model.

    An untied model has ``tie_word_embeddings: false``: transformers 4 and 5 then do not scale the
    decoder's output.

    Raises:
        InputError: transformers' T5 has no such MLP.
    """
    names = {activations: name for name, activations in hf.ACTIVATIONS.items()}
    if model.mlp_activations not in names:
        raise InputError(
            f"MLP_ACTIVATIONS={model.mlp_activations!r}: transformers' T5 supports "
            f"{', '.join(map(repr, names))}. Export with --to=t5x."
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
    """``generation_config.json``: greedy, as in this package's evaluation."""
    return {
        "do_sample": False,
        "num_beams": 1,
        "max_new_tokens": max_new_tokens,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": PAD_ID,
    }


def write_json(path: epath.Path, value: Mapping[str, Any]) -> None:
    """Writes indented JSON."""
    records.write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_weights(folder: epath.Path, params: PyTree, shard_bytes: int = SHARD_BYTES) -> None:
    """Writes ``model.safetensors``, or shards and their index, one array at a time.

    Args:
        folder: must exist.
        params: tree of float32 arrays, which may be lazy (`RunArrays.tree`).
        shard_bytes: maximum bytes of arrays in one file.
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


def _shards(shapes: Mapping[str, Shape], shard_bytes: int) -> Iterator[dict[str, Shape]]:
    """Splits the arrays, in order, into files; an array above `shard_bytes` gets its own file."""
    shard: dict[str, Shape] = {}
    size = 0
    for key, shape in shapes.items():
        if shard and size + _nbytes(shape) > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[key] = shape
        size += _nbytes(shape)
    yield shard


def _write_safetensors(
    path: epath.Path, shapes: Mapping[str, Shape], arrays: Iterator[tuple[str, np.ndarray]]
) -> None:
    """Writes the next arrays of `arrays` into one file; safetensors itself needs all at once.

    Format: the header's length (8 bytes, little endian); the header, JSON of each array's dtype,
    shape and offsets; the arrays.
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
    """Writes files from which `AutoTokenizer` produces the ids of `vocabulary`.

    Exceptions: texts that contain a special token other than ``</s>`` and, with a word-level
    vocabulary, consecutive unknown words.

    Args:
        folder: must exist.
        vocabulary: SentencePiece unigram (``spiece.model``), bytes (ByT5's tokenizer), or
            word-level (also ``tokenizer.json``).
        max_length: maximum input tokens, EOS included.

    Raises:
        InputError: transformers has no equivalent tokenizer.
    """
    config: dict[str, Any] = {**_SPECIAL, "model_max_length": max_length}
    if isinstance(vocabulary, ByteVocabulary):
        config |= {"tokenizer_class": "ByT5Tokenizer", "extra_ids": 0}
        # By default ByT5's tokenizer strips the spaces around </s>.
        config["added_tokens_decoder"] = {
            str(token): {"content": content, "special": True, "lstrip": False, "rstrip": False}
            for token, content in ((PAD_ID, "<pad>"), (EOS_ID, "</s>"), (UNK_ID, "<unk>"))
        }
    elif isinstance(vocabulary, SentencePieceVocabulary):
        (folder / SENTENCEPIECE_FILE).write_bytes(vocabulary.model)
        kind = _model_type(vocabulary)
        if kind == "UNIGRAM":
            sentinels = vocabulary.size - len(vocabulary.pieces())
            config |= {"tokenizer_class": "T5Tokenizer", "extra_ids": sentinels}
        elif kind == "WORD":
            (folder / TOKENIZER_JSON).write_text(_word_level(vocabulary))
            config |= {"tokenizer_class": "PreTrainedTokenizerFast"}
        else:
            raise InputError(
                f"VOCABULARY: transformers' T5 cannot read this SentencePiece model: got type "
                f"{kind}, expected UNIGRAM. Export with --to=t5x."
            )
    write_json(folder / TOKENIZER_CONFIG, config)


def _proto(vocabulary: SentencePieceVocabulary) -> Any:
    from sentencepiece import sentencepiece_model_pb2

    # The module creates the class dynamically.
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
    """Compares the ids of `AutoTokenizer` with those of the vocabulary.

    Returns:
        Number of texts compared.

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
                f"VOCABULARY: transformers' tokenizer differs on {text!r}: got {theirs}, expected "
                f"{ours}. Export with --to=t5x."
            )
    return count
