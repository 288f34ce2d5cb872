"""The token cache of each split of a run, as its METHOD reads it."""

from __future__ import annotations

from stepdistill_jax.data.pipeline import SplitCache
from stepdistill_jax.data.token_cache import open_or_build
from stepdistill_jax.data.views import marker_ids, token_view
from stepdistill_jax.data.vocabulary import load_vocabulary
from stepdistill_jax.parallel import processes
from stepdistill_jax.run.config import RunConfig


def open_split(config: RunConfig, split: str) -> SplitCache:
    """A split's token cache, built first where there is none, as METHOD reads it.

    Of several processes the lead builds, and the others find its cache where they share CACHE_DIR,
    else build their own.

    Raises:
        InputError: see `token_cache.open_or_build` and `views.token_view`; or the processes have
            different data.
    """
    vocabulary = load_vocabulary(config.tokens.vocabulary)
    cache = processes.lead_first(lambda: open_or_build(config.data, config.tokens, split))
    processes.refuse_difference(
        f"{split} data and vocabulary",
        cache.manifest.fingerprint,
        "Give all hosts the same files (DATA_DIR, VOCABULARY and their environment variables).",
    )
    return token_view(cache, config.method, config.views, vocabulary, config.seed)


def tokens_before_label(config: RunConfig) -> int:
    """Tokens that a student of METHOD may write before the label: a rationale and the marker."""
    if config.method != "single_task":
        return 0
    marker = marker_ids(config.views.answer_marker, load_vocabulary(config.tokens.vocabulary))
    return config.tokens.max_rationale_length - 1 + len(marker)
