"""What an extraction is: which teacher, asked how, for which rows, at what cost at most."""

from __future__ import annotations

import dataclasses
import re
import urllib.parse

from stepdistill_jax import storage
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.requests import Decoding

CLIENTS = ("openai", "batch", "local", "replay")
FORMS = ("chat", "completion")
SPLITS = ("train", "validation", "test")


@dataclasses.dataclass(frozen=True)
class ExtractConfig:
    """One extraction. Fields and macros are described in ``gin/parts/extract.gin``."""

    extract_dir: str = ""
    extract_splits: tuple[str, ...] = ("train",)
    extract_inputs: str = ""
    client: str = "openai"
    teacher_model: str = ""
    teacher_url: str = ""
    teacher_key: str = "OPENAI_API_KEY"
    teacher_tokenizer: str = ""
    context_length: int = 0
    prompt_file: str = ""
    prompt_form: str = "chat"
    temperature: float = 0.0
    top_p: float = 1.0
    samples: int = 1
    max_new_tokens: int = 256
    sampling_seed: int = 0
    hint_wrong: bool = False
    concurrency: int = 16
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    timeout: float = 60.0
    retries: int = 6
    batch_poll: float = 60.0
    price_input: float | None = None
    price_output: float | None = None
    max_cost: float | None = None
    max_rows: int | None = None
    replay: str = ""
    answer_cache: str = ""

    def __post_init__(self) -> None:
        if storage.is_remote(self.extract_dir):
            raise InputError(
                f"EXTRACT_DIR={self.extract_dir!r}: name a folder on a disk; every answer is "
                "appended the moment it is there, which an object store cannot do"
            )
        if not self.extract_dir:
            raise InputError(
                "EXTRACT_DIR is empty: name the extraction's folder, as in "
                "--gin.EXTRACT_DIR=teachers/first"
            )
        self._refuse_secrets()
        self._check_choices()
        self._check_numbers()
        self._refuse_contradictions()

    @property
    def decoding(self) -> Decoding:
        """How the teacher writes."""
        return Decoding(self.temperature, self.top_p, self.max_new_tokens, self.sampling_seed)

    def _refuse_secrets(self) -> None:
        """Raises, without showing it, on a key where it would be written into ``config.gin``."""
        if not re.fullmatch(r"(?:[A-Z_][A-Z0-9_]*)?", self.teacher_key):
            raise InputError(
                "TEACHER_KEY is no name of an environment variable (upper case, digits and _); put "
                "a key into a variable, as OPENAI_API_KEY, and the variable's name here"
            )
        try:
            address = urllib.parse.urlsplit(self.teacher_url)
        except ValueError:
            raise InputError(
                "TEACHER_URL is no address; write it with its scheme and version, as in "
                "'http://127.0.0.1:8000/v1'"
            ) from None
        if "@" in address.netloc or address.query:
            raise InputError(
                "TEACHER_URL holds a user, a password or a query; name the address alone, and put "
                "the key into the environment variable that TEACHER_KEY names"
            )

    def _check_choices(self) -> None:
        for macro, value, choices in (
            ("CLIENT", self.client, CLIENTS),
            ("PROMPT_FORM", self.prompt_form, FORMS),
        ):
            if value not in choices:
                raise InputError(f"{macro}={value!r}: expected one of {', '.join(choices)}")
        unknown = [split for split in self.extract_splits if split not in SPLITS]
        if unknown:
            raise InputError(
                f"EXTRACT_SPLITS names {', '.join(map(repr, unknown))}: expected some of "
                f"{', '.join(SPLITS)}"
            )

    def _check_numbers(self) -> None:
        """Raises on a number out of its range."""
        least: tuple[tuple[str, float], ...] = (
            ("SAMPLES", 1),
            ("MAX_NEW_TOKENS", 1),
            ("CONCURRENCY", 1),
            ("CONTEXT_LENGTH", 0),
            ("REQUESTS_PER_MINUTE", 0),
            ("TOKENS_PER_MINUTE", 0),
            ("RETRIES", 0),
            ("TEMPERATURE", 0),
            ("PRICE_INPUT", 0),
            ("PRICE_OUTPUT", 0),
            ("MAX_COST", 0),
            ("MAX_ROWS", 1),
        )
        for macro, bound in least:
            value = getattr(self, macro.lower())
            if value is not None and not value >= bound:
                raise InputError(f"{macro}={value}: expected at least {bound}")
        for macro, value in (("TIMEOUT", self.timeout), ("BATCH_POLL", self.batch_poll)):
            if not value > 0:
                raise InputError(f"{macro}={value}: expected seconds, more than 0")
        if not 0 < self.top_p <= 1:
            raise InputError(f"TOP_P={self.top_p}: expected a share in (0, 1]")

    def _refuse_contradictions(self) -> None:
        """Raises on settings that are legal one by one and not together."""
        if not self.teacher_model and self.client != "replay":
            raise InputError(
                f"TEACHER_MODEL is empty, but CLIENT={self.client!r} asks a model; name it as its "
                "endpoint does (local: a folder, or hf:OWNER/NAME)"
            )
        if bool(self.replay) != (self.client == "replay"):
            raise InputError(
                f"REPLAY={self.replay!r} with CLIENT={self.client!r}: answers are replayed with "
                "CLIENT='replay' and a REPLAY to take them from, 'release' or a file"
            )
        if self.samples > 1 and self.temperature == 0:
            raise InputError(
                f"SAMPLES={self.samples} with TEMPERATURE=0 would pay for the same answer "
                f"{self.samples} times; raise TEMPERATURE, or set SAMPLES=1"
            )
        priced = self.price_input is not None and self.price_output is not None
        if self.max_cost is not None and not priced:
            raise InputError(
                f"MAX_COST={self.max_cost} cannot be kept without prices; set PRICE_INPUT and "
                "PRICE_OUTPUT, per million tokens"
            )
        if not self.extract_splits and not self.extract_inputs:
            raise InputError(
                "EXTRACT_SPLITS and EXTRACT_INPUTS are empty, so there is nothing to ask; name one"
            )
