"""Counts a prompt's tokens with the teacher's own tokenizer, and refuses one that is too long."""

from __future__ import annotations

import pathlib
from typing import Any

from stepdistill_jax import hub
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Request

_CHOICES = "a folder with a tokenizer, or 'hf:OWNER/NAME'"
_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
# Tokens beside the text of a turn, and of the opening of the answer, where no template says. The
# published templates of chat models take three to five.
TURN = 5


class Counter:
    """Counts as TEACHER_TOKENIZER does.

    Attributes:
        name: of the tokenizer, for messages.
        is_exact_chat: it has a chat template; without one `TURN` tokens are taken for each turn.
    """

    def __init__(self, tokenizer: Any, name: str) -> None:
        """`tokenizer` is of transformers."""
        self.name = name
        self.is_exact_chat = bool(getattr(tokenizer, "chat_template", None))
        self._tokenizer = tokenizer

    def __call__(self, text: str) -> int:
        """Tokens of a text as it stands, without the tokens that begin or end every text."""
        return len(self._tokenizer.encode(text, add_special_tokens=False))

    def request(self, request: Request) -> int:
        """Tokens that the teacher reads, those of the chat's turns and of the beginning included.

        Raises:
            InputError: the tokenizer's chat template refuses the prompt.
        """
        if not request.messages:
            return len(self._tokenizer.encode(request.prompt))
        if not self.is_exact_chat:
            return TURN + sum(self(message.content) + TURN for message in request.messages)
        return self(self._rendered(request))

    def _rendered(self, request: Request) -> str:
        """The chat as its template writes it, up to where the answer begins."""
        import jinja2

        turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
        try:
            rendered: str = self._tokenizer.apply_chat_template(
                turns, tokenize=False, add_generation_prompt=True
            )
        except jinja2.TemplateError as error:
            raise InputError(
                f"TEACHER_TOKENIZER {self.name!r}: its chat template refuses the prompt ({error}), "
                "as an endpoint of that model would; set PROMPT_FORM='completion', or take the "
                "instruction out of a PROMPT_FILE of your own"
            ) from error
        return rendered


def counter(extract: ExtractConfig) -> Counter | None:
    """The counter of TEACHER_TOKENIZER; None where it is empty.

    Raises:
        InputError: there is no such tokenizer, or it cannot be loaded.
    """
    name = extract.teacher_tokenizer
    if not name:
        return None
    import transformers

    source = name.removeprefix(hub.PREFIX)
    if name.startswith(hub.PREFIX):
        # Asked for first, since it says quickly and plainly where a file is missing.
        remedy = "set TEACHER_TOKENIZER to it"
        hub.find("TEACHER_TOKENIZER", source, _FILES, remedy, "--exclude '*.safetensors'")
    else:
        folder = pathlib.Path(name).expanduser()
        if not any((folder / file).is_file() for file in _FILES):
            raise InputError(
                f"TEACHER_TOKENIZER {name!r}: no {' or '.join(_FILES)} there; set it to {_CHOICES}"
            )
        source = str(folder)
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ImportError) as error:
        # Damaged files, unknown classes, code that would have to be trusted, missing libraries.
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"TEACHER_TOKENIZER {name!r} could not be loaded: {reason:.300}; set it to {_CHOICES}, "
            "or to '' for an estimate"
        ) from error
    return Counter(tokenizer, name)


def check_context(
    prompt_tokens: int, extract: ExtractConfig, context: int | None = None, where: str = ""
) -> None:
    """Refuses a prompt that leaves no room for the answer.

    Args:
        prompt_tokens: of the whole prompt, row included.
        extract: CONTEXT_LENGTH and MAX_NEW_TOKENS.
        context: what the endpoint says that it holds, for a CONTEXT_LENGTH of 0; None = not known,
            and nothing is checked.
        where: ``file:line`` of the row, for the message.

    Raises:
        InputError: saying by how many tokens it is too long.
    """
    limit = extract.context_length or context
    if not limit:
        return
    over = prompt_tokens + extract.max_new_tokens - limit
    if over <= 0:
        return
    source = "CONTEXT_LENGTH" if extract.context_length else "what the endpoint says"
    about = f"{where}: " if where else ""
    remedy = "take exemplars out (PROMPT_FILE) or ask a model that holds more"
    if extract.max_new_tokens > over:
        remedy = f"set MAX_NEW_TOKENS={extract.max_new_tokens - over} or less, {remedy}"
    raise InputError(
        f"{about}the prompt has {prompt_tokens:,} tokens and the answer may have "
        f"{extract.max_new_tokens:,} (MAX_NEW_TOKENS): {over:,} more than the {limit:,} that "
        f"{extract.teacher_model or 'the teacher'} holds ({source}); {remedy}"
    )
