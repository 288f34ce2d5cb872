"""A causal language model of Hugging Face on this machine, as a teacher."""

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
from stepdistill_jax.teacher.requests import Completion, EndpointError, Request, RequestError

# Tokens that are looked at for a stop text besides one for each of its bytes.
_TAIL_MARGIN = 4


@dataclasses.dataclass(frozen=True)
class _Waiting:
    """A request in the queue: as tokens, and who waits for its answer."""

    request: Request
    tokens: list[int]
    answer: asyncio.Future[Completion]

    @property
    def settings(self) -> tuple[Any, ...]:
        """Requests of equal settings can share a batch; the seed is each one's own."""
        return (dataclasses.replace(self.request.decoding, seed=0), self.request.stop)


class LocalClient:
    """Generates in a thread of its own, up to CONCURRENCY waiting requests a batch.

    A request's answer does not depend on the batch that it happens to be in (but for rounding): a
    sampled one draws from a generator of its own, seeded by the request's content.

    TIMEOUT and RETRIES do not apply: nothing here is lost on the way.
    """

    def __init__(self, extract: ExtractConfig) -> None:
        """Loads the model, onto an accelerator where PyTorch sees one.

        Raises:
            InputError: PyTorch is missing, TEACHER_MODEL is no model, or it has no chat template
                while PROMPT_FORM is "chat".
        """
        self._most = extract.concurrency
        self._tokenizer = _from_pretrained("AutoTokenizer", extract.teacher_model)
        if extract.prompt_form == "chat" and not self._tokenizer.chat_template:
            raise InputError(
                f"TEACHER_MODEL {extract.teacher_model!r} has no chat template; set "
                "PROMPT_FORM='completion'"
            )
        self._model = _load_model(extract.teacher_model, self._tokenizer)
        self._longest = _longest(self._model.config)
        self._queue: list[_Waiting] = []
        self._serving: asyncio.Task[None] | None = None
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "local-teacher")
        self._closing = threading.Event()

    async def complete(self, request: Request) -> Completion:
        """See `requests.Client`; `Completion.seconds` is that of its batch."""
        tokens = self._encode(request)
        wanted = len(tokens) + request.decoding.max_new_tokens
        if self._longest is not None and wanted > self._longest:
            raise RequestError(
                failures.CONTEXT,
                f"{len(tokens)} tokens and MAX_NEW_TOKENS={request.decoding.max_new_tokens} are "
                f"{wanted - self._longest} more than the {self._longest} that the model holds",
            )
        answer: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._queue.append(_Waiting(request, tokens, answer))
        if self._serving is None or self._serving.done():
            self._serving = asyncio.create_task(self._serve())
        completion = await answer
        if not completion.text.strip():
            counts = (completion.prompt_tokens or 0, completion.completion_tokens or 0)
            raise RequestError(
                failures.EMPTY, f"finish_reason is {completion.finish_reason}", *counts
            )
        return completion

    async def close(self) -> None:
        """Stops at the next token, and lets go of the model."""
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
                f"the chat template of TEACHER_MODEL {request.model!r} refuses the prompt "
                f"({failures.one_line(error)}); set PROMPT_FORM='completion'"
            ) from None
        # The template has written the special tokens.
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])

    async def _serve(self) -> None:
        """Batch after batch, until nothing waits."""
        loop = asyncio.get_running_loop()
        # All that are about to ask in this turn of the loop come into the first batch.
        await asyncio.sleep(0)
        while self._queue:
            settings = self._queue[0].settings
            batch = [waiting for waiting in self._queue if waiting.settings == settings]
            batch = batch[: self._most]
            self._queue = [waiting for waiting in self._queue if waiting not in batch]
            batch = [waiting for waiting in batch if not waiting.answer.done()]
            if not batch:
                continue
            given = [(waiting.request, waiting.tokens) for waiting in batch]
            try:
                answers = await loop.run_in_executor(self._thread, self._generate, given)
            except Exception as error:  # handed on to everyone who waits
                failure = _failure(error, len(batch))
                for waiting in batch:
                    if not waiting.answer.done():
                        waiting.answer.set_exception(failure)
                continue
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():
                    waiting.answer.set_result(answer)
            # Those who were answered may ask again, before the next batch is made up.
            await asyncio.sleep(0)

    def _generate(self, batch: Sequence[tuple[Request, list[int]]]) -> list[Completion]:
        """Answers to requests of equal settings."""
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
        """Which rows `[B]` end with a stop text; all of them when the client is closed."""
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
        self, request: Request, read: int, written: list[int], seconds: float
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
            prompt_tokens=read,
            completion_tokens=length,
            model=request.model,
            seconds=seconds,
        )


def _sampler(requests: Sequence[Request]) -> list[Callable[[Any, Any], Any]]:
    """What is done to the logits before the largest is taken: nothing for greedy.

    The largest of logits with Gumbel noise is a sample of their softmax, and the noise of a row can
    come from a generator of its own, which a batch's draw cannot.
    """
    import torch
    from transformers import TemperatureLogitsWarper, TopPLogitsWarper

    decoding = requests[0].decoding
    if decoding.temperature == 0:
        return []
    generators = [torch.Generator().manual_seed(int(r.key[:15], 16)) for r in requests]

    def add_noise(tokens: Any, scores: Any) -> Any:
        draws = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in generators]
        # Of an exponential draw, minus the logarithm is Gumbel's distribution.
        return scores - torch.stack(draws).log().to(scores.device)

    nucleus = [TopPLogitsWarper(decoding.top_p)] if decoding.top_p < 1 else []
    return [TemperatureLogitsWarper(float(decoding.temperature)), *nucleus, add_noise]


def _failure(error: Exception, rows: int) -> Exception:
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return EndpointError(
            f"the memory does not hold {rows} rows at once; lower CONCURRENCY, or MAX_NEW_TOKENS"
        )
    return error


def _load_model(name: str, tokenizer: Any) -> Any:
    """The model, which decodes as it is told and not as its makers prefer."""
    import torch
    from transformers import GenerationConfig

    has_accelerator = torch.accelerator.is_available()
    # Half precision is slow on a CPU where it is there at all.
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
            f"CLIENT='local' needs {error.name}, which is not installed; install it (pip install "
            "torch), or ask an endpoint with CLIENT='openai'"
        ) from error
    place = name.removeprefix(hub.PREFIX)
    if place == name:
        folder = epath.Path(name).expanduser()
        if not (folder / "config.json").is_file():
            raise InputError(
                f"TEACHER_MODEL {name!r} is no folder with a config.json; correct it, or write "
                "'hf:OWNER/NAME' for a model of the hub"
            )
        place = str(folder)
    try:
        return getattr(transformers, kind).from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = failures.one_line(error)
        raise InputError(
            f"TEACHER_MODEL {name!r} cannot be loaded as {kind} ({type(error).__name__}: {said}); "
            "name a causal language model, or save it on this machine where there is no network"
        ) from error


def _longest(config: Any) -> int | None:
    value = getattr(config.get_text_config(), "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def context_length(name: str) -> int | None:
    """Tokens that a model holds, prompt and answer; None = it does not say.

    Raises:
        InputError: there is no such model.
    """
    return _longest(_from_pretrained("AutoConfig", name))


def token_counter(name: str) -> Callable[[str], int]:
    """Counts a text's tokens with a model's tokenizer.

    Raises:
        InputError: there is no such model.
    """
    tokenizer = _from_pretrained("AutoTokenizer", name)
    return lambda text: len(tokenizer(text)["input_ids"])
