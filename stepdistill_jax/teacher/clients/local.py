"""A Hugging Face causal language model on this machine, as the teacher."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from stepdistill_jax import hub
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.clients import failures
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    Client,
    Completion,
    EndpointError,
    Request,
    RequestError,
)

# Tokens that are searched for a stop text, beside one for each of its bytes.
_TAIL_MARGIN = 4


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A request in the queue, with its prompt's tokens and the future of its completion."""

    request: Request
    tokens: list[int]
    answer: asyncio.Future[Completion]

    @property
    def settings(self) -> tuple[Any, ...]:
        """Requests of equal settings can share a batch; each has its own seed."""
        return (dataclasses.replace(self.request.decoding, seed=0), self.request.stop)


class LocalClient(Client):
    """Generates in a thread, up to CONCURRENCY waiting requests per batch.

    A completion does not depend on the rest of its batch (except for rounding): sampling uses one
    generator per request, seeded by the request's content. TIMEOUT and RETRIES do not apply.
    """

    def __init__(self, extract: ExtractConfig) -> None:
        """Loads the model, onto an accelerator if PyTorch finds one.

        Raises:
            InputError: PyTorch is missing, TEACHER_MODEL cannot be loaded, or it has no chat
                template and PROMPT_FORM is "chat".
        """
        self._batch_size = extract.concurrency
        self._tokenizer = _from_pretrained("AutoTokenizer", extract.teacher_model)
        if extract.prompt_form == "chat" and not self._tokenizer.chat_template:
            raise InputError(
                f"TEACHER_MODEL={extract.teacher_model!r} has no chat template. Set "
                "PROMPT_FORM='completion'."
            )
        self._model = _load_model(extract.teacher_model, self._tokenizer)
        self._longest = _longest(self._model.config)
        self._queue: list[_Waiting] = []
        self._serving: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "local-teacher")
        self._closing = threading.Event()

    async def complete(self, request: Request) -> Completion:
        """See `Client`; `Completion.seconds` is that of its batch."""
        tokens = self._encode(request)
        length = len(tokens) + request.decoding.max_new_tokens
        if self._longest is not None and length > self._longest:
            raise RequestError(
                failures.CONTEXT,
                f"{len(tokens)} tokens and MAX_NEW_TOKENS={request.decoding.max_new_tokens} exceed "
                f"the model's context of {self._longest} by {length - self._longest}",
            )
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(request, tokens, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        completion = await answer
        if not completion.text.strip():
            counts = (completion.prompt_tokens or 0, completion.completion_tokens or 0)
            raise failures.empty(completion.finish_reason, *counts)
        return completion

    async def close(self) -> None:
        """Stops at the next token, and releases the model."""
        self._closing.set()
        if self._serving is not None:
            await asyncio.gather(self._serving, return_exceptions=True)
        self._thread.shutdown()
        self._model = None

    def _encode(self, request: Request) -> list[int]:
        if not request.messages:
            return list(self._tokenizer(request.prompt)["input_ids"])
        from jinja2 import TemplateError

        turns = [dataclasses.asdict(message) for message in request.messages]
        try:
            text = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except TemplateError as error:
            raise EndpointError(
                f"TEACHER_MODEL={request.model!r}: its chat template rejects the prompt "
                f"({failures.one_line(error)}). Set PROMPT_FORM='completion'."
            ) from None
        # The template wrote the special tokens.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _serve(self) -> None:
        """Generates batch after batch until the queue is empty."""
        loop = asyncio.get_running_loop()
        # Let all requests of this turn of the loop into the first batch.
        await asyncio.sleep(0)
        while self._queue:
            settings = self._queue[0].settings
            batch = [waiting for waiting in self._queue if waiting.settings == settings]
            batch = batch[: self._batch_size]
            self._queue = [waiting for waiting in self._queue if waiting not in batch]
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if not batch:
                continue
            prompts = [(waiting.request, waiting.tokens) for waiting in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self._generate, prompts)
            except Exception as error:  # every waiting request gets it
                failure = _failure(error, len(batch))
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(failure)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
            # Let requests that follow from these into the next batch.
            await asyncio.sleep(0)

    def _generate(self, batch: Sequence[tuple[Request, list[int]]]) -> list[Completion]:
        """Completions of requests of equal settings."""
        import torch

        start = time.monotonic()
        longest = max(len(tokens) for _, tokens in batch)
        pad = self._model.generation_config.pad_token_id
        padded = [[pad] * (longest - len(tokens)) + tokens for _, tokens in batch]
        mask = [[0] * (longest - len(tokens)) + [1] * len(tokens) for _, tokens in batch]
        device = self._model.device
        request = batch[0][0]
        written = self._model.generate(
            input_ids=torch.tensor(padded, device=device),
            attention_mask=torch.tensor(mask, device=device),
            max_new_tokens=request.decoding.max_new_tokens,
            logits_processor=_sampler([request for request, _ in batch]),
            stopping_criteria=[functools.partial(self._stops, request.stop, longest)],
        )
        seconds = time.monotonic() - start
        return [
            self._completion(request, len(tokens), row, seconds)
            for (request, tokens), row in zip(batch, written[:, longest:].tolist(), strict=True)
        ]

    def _stops(self, stop: tuple[str, ...], start: int, tokens: Any, scores: Any) -> Any:
        """Which rows `[B]` are finished: those with a stop text, or all when the client closes."""
        import torch

        if self._closing.is_set() or not stop:
            ended = [self._closing.is_set()] * len(tokens)
        else:
            tail = max(len(text.encode()) for text in stop) + _TAIL_MARGIN
            tails = tokens[:, start:][:, -tail:].tolist()
            texts = self._tokenizer.batch_decode(tails, skip_special_tokens=True)
            ended = [any(text in row for text in stop) for row in texts]
        return torch.tensor(ended, device=tokens.device)

    def _completion(
        self, request: Request, prompt_tokens: int, written: list[int], seconds: float
    ) -> Completion:
        config = self._model.generation_config
        ends = {config.pad_token_id, *config.eos_token_id}
        length = next((place for place, token in enumerate(written) if token in ends), len(written))
        text = self._tokenizer.decode(written[:length], skip_special_tokens=True)
        cut = min((text.find(stop) for stop in request.stop if stop in text), default=None)
        is_whole = cut is not None or length < len(written)
        return Completion(
            text=text[:cut],
            finish_reason="stop" if is_whole else "length",
            prompt_tokens=prompt_tokens,
            completion_tokens=length,
            model=request.model,
            seconds=seconds,
        )


def _sampler(requests: Sequence[Request]) -> list[Callable[[Any, Any], Any]]:
    """Processors of the logits before the argmax; none for greedy decoding.

    The argmax of logits with Gumbel noise is a sample of their softmax. So each row can have its
    own generator, which sampling a whole batch does not allow.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    decoding = requests[0].decoding
    if decoding.temperature == 0:
        return []
    generators = [torch.Generator().manual_seed(int(r.key[:15], 16)) for r in requests]

    def add_noise(tokens: Any, scores: Any) -> Any:
        draws = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in generators]
        # Minus the logarithm of an exponential draw has the Gumbel distribution.
        return scores - torch.stack(draws).log().to(scores.device)

    nucleus = [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
    return [TemperatureLogitsWarper(float(decoding.temperature)), *nucleus, add_noise]


def _failure(error: Exception, rows: int) -> Exception:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return EndpointError(
            f"out of memory with {rows} requests in a batch. Lower CONCURRENCY or MAX_NEW_TOKENS."
        )
    return error


def _load_model(name: str, tokenizer: Any) -> Any:
    """The model, with our decoding settings in place of the checkpoint's defaults."""
    import torch
    from transformers import GenerationConfig

    has_accelerator = torch.accelerator.is_available()
    # Half precision is slow on a CPU.
    dtype = "auto" if has_accelerator else torch.float32
    model = _from_pretrained("AutoModelForCausalLM", name, dtype=dtype).eval()
    if has_accelerator:
        model = model.to(torch.accelerator.current_accelerator())
    ends = model.generation_config.eos_token_id
    if ends is None:
        ends = tokenizer.eos_token_id
    ends = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
    pad = tokenizer.pad_token_id
    if pad is None:
        pad = ends[0] if ends else 0
    model.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=ends, pad_token_id=pad, use_cache=True
    )
    return model


def _from_pretrained(kind: str, name: str, **options: Any) -> Any:
    """One of the library's automatic classes, for a folder or ``hf:OWNER/NAME``.

    Raises:
        InputError: it cannot be loaded.
    """
    try:
        import transformers

        if kind == "AutoModelForCausalLM":
            import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"CLIENT='local' needs {error.name}, which is not installed. Install it (pip install "
            "torch), or use an endpoint with CLIENT='openai'."
        ) from error
    place = name.removeprefix(hub.PREFIX)
    if place == name:
        folder = epath.Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"TEACHER_MODEL={name!r}: not a folder with a config.json. Correct it, or write "
                "'hf:OWNER/NAME' for a model on the Hub."
            )
        place = str(folder)
    try:
        return getattr(transformers, kind).from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        detail = failures.one_line(error)
        raise InputError(
            f"TEACHER_MODEL={name!r}: cannot be loaded as {kind} ({type(error).__name__}: "
            f"{detail}). Name a causal language model; without a network name its folder."
        ) from error


def _longest(config: Any) -> int | None:
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def context_length(name: str) -> int | None:
    """Tokens that a model's context holds; None = unknown. Raises InputError without the model."""
    return _longest(_from_pretrained("AutoConfig", name))


def token_counter(name: str) -> Callable[[str], int]:
    """Counts a text's tokens with a model's tokenizer. Raises InputError without the model."""
    tokenizer = _from_pretrained("AutoTokenizer", name)
    return lambda text: len(tokenizer(text)["input_ids"])
