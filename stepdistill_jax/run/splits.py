"""The token cache of each split of a run, as its METHOD reads it."""

from __future__ import annotations

import functools

import numpy as np
from absl import logging

from stepdistill_jax.data import lost_text
from stepdistill_jax.data.lost_text import LostText
from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.data.token_cache import TokenCache, open_or_build
from stepdistill_jax.data.views import marker_ids, token_view
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.parallel import processes
from stepdistill_jax.run.config import RunConfig
from stepdistill_jax.spec import LABEL, InputError

# Sizes up to this one are allowed with any data.
ALWAYS_ALLOWED = 1024


def open_split(config: RunConfig, split: str) -> SplitCache:
    """A split's token cache, built first where there is none, as METHOD reads it.

    Of several processes the lead builds, and the others find its cache where they share CACHE_DIR,
    else build their own.

    Raises:
        InputError: see `token_cache.open_or_build` and `views.token_view`; a batch or an output is
            larger than the data can use; EVAL_MODE=choices cannot tell two labels apart; or the
            processes have different data.
    """
    vocabulary = load_vocabulary(config.tokens.vocabulary)
    cache, lost = processes.lead_first(lambda: _open(config, split))
    processes.refuse_difference(
        f"{split} data and vocabulary",
        cache.manifest.fingerprint,
        "Give all hosts the same files (DATA_DIR, VOCABULARY and their environment variables).",
    )
    if config.eval.mode == "choices":
        lost_text.refuse_equal_choices(lost, split)
    decodes, limit = config.eval.mode == "decode", config.tokens.max_label_length
    decisions = cache.manifest.report
    for warning in lost_text.warnings(lost, split, decisions, limit, decodes=decodes):
        _warn_once(warning)
    view = token_view(cache, config.method, config.views, vocabulary, config.seed)
    _refuse_more_than_useful(config, split, view)
    _warn_of_longer_labels(config, split, view)
    return view


def _open(config: RunConfig, split: str) -> tuple[TokenCache, LostText]:
    cache = open_or_build(config.data, config.tokens, split)
    return cache, lost_text.of_cache(cache, config.data, config.tokens)


@functools.cache
def _warn_once(text: str) -> None:
    """Warns once a process, since a program opens the same split several times."""
    logging.warning("%s", text)


def _refuse_more_than_useful(config: RunConfig, split: str, view: SplitCache) -> None:
    """Refuses sizes that only fill the memory, beyond what the data can use."""
    longest = int(np.max(view.lengths[f"{LABEL}_targets"], initial=0))
    bounds = [
        ("EVAL_BATCH_SIZE", config.eval.batch_size, len(view), f"examples in {split}"),
        (
            "MAX_DECODE_LENGTH",
            config.eval.max_decode_length,
            longest,
            "tokens in the longest label",
        ),
    ]
    if split == "train":
        bounds = [("BATCH_SIZE", config.pipeline.batch_size, len(view), "training pairs")]
    for macro, value, useful, what in bounds:
        limit = max(ALWAYS_ALLOWED, useful)
        if value > limit:
            raise InputError(
                f"{macro}: got {value}, expected at most {limit}: there are {useful} {what}. "
                f"Lower {macro}."
            )


def _warn_of_longer_labels(config: RunConfig, split: str, view: SplitCache) -> None:
    limit = config.eval.max_decode_length
    if not limit or config.eval.mode != "decode":
        return
    lengths = view.lengths[f"{LABEL}_targets"]
    longer = int(np.sum(lengths > tokens_before_label(config) + limit))
    if longer:
        _warn_once(
            f"MAX_DECODE_LENGTH={limit}: {longer} of {len(lengths)} labels of {split} are longer "
            "and can never be predicted. Remove MAX_DECODE_LENGTH."
        )


def label_tokens(config: RunConfig) -> int:
    """Maximum tokens of a label that a student may write, whatever the data: an upper bound."""
    return config.eval.max_decode_length or config.tokens.max_label_length


def tokens_before_label(config: RunConfig) -> int:
    """Tokens that a student of METHOD may write before the label: a rationale and the marker."""
    if config.method != "single_task":
        return 0
    marker = marker_ids(config.views.answer_marker, load_vocabulary(config.tokens.vocabulary))
    return config.tokens.max_rationale_length - 1 + len(marker)
