"""Notices that an endpoint cuts prompts to its context, as Ollama does without a word."""

from __future__ import annotations

# Prompts that report the same, greatest number of tokens before it is more than chance.
_ENOUGH = 8
# Characters by which the longest and the shortest of them differ: no tokenizer makes them equal.
_SPREAD = 200


class CutPrompts:
    """Compares the texts that were sent with the tokens that the endpoint read of them."""

    def __init__(self) -> None:
        self._responses = 0
        self._tokens = 0
        self._lengths: list[int] = []

    def add(self, text: str, prompt_tokens: int | None) -> str:
        """Takes in a response; returns the message for the user where prompts are cut.

        Prompts of different lengths that all report the same, greatest number of tokens were cut to
        it.

        Args:
            text: all that the teacher should read.
            prompt_tokens: what the endpoint says that it read; None = it does not say.
        """
        if prompt_tokens is None:
            return ""
        self._responses += 1
        if prompt_tokens > self._tokens:
            self._tokens, self._lengths = prompt_tokens, []
        if prompt_tokens == self._tokens:
            self._lengths.append(len(text))
        shortest, longest = min(self._lengths), max(self._lengths)
        is_usual = len(self._lengths) >= max(_ENOUGH, self._responses / 2)
        if not is_usual or longest - shortest < _SPREAD:
            return ""
        return (
            f"the endpoint cuts prompts: {len(self._lengths)} prompts of {shortest:,} to "
            f"{longest:,} characters all count {self._tokens:,} tokens. Raise its context (Ollama: "
            "OLLAMA_CONTEXT_LENGTH, llama.cpp: -c, vLLM: --max-model-len) and use another "
            "EXTRACT_DIR, or set STOP_AFTER_FAILURES=0 to go on regardless."
        )
