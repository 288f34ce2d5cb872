"""The settings of an extraction: teacher, prompt, examples and budget."""

from __future__ import annotations

import dataclasses
import json
import re
import urllib.parse

from stepdistill_jax import storage
from stepdistill_jax.settings import check, setting
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher.requests import Decoding

SPLITS = ("train", "validation", "test")
# Fields of a request that EXTRA_BODY may not set, and the macros behind them.
_FIELDS_OF_MACROS = {
    "model": "TEACHER_MODEL",
    "messages": "PROMPT_FILE",
    "prompt": "PROMPT_FILE",
    "stop": "PROMPT_FILE",
    "temperature": "TEMPERATURE",
    "top_p": "TOP_P",
    "seed": "SAMPLING_SEED",
    "max_tokens": "MAX_NEW_TOKENS",
    "max_completion_tokens": "MAX_NEW_TOKENS",
    "reasoning_effort": "REASONING_EFFORT",
    "n": "SAMPLES",
    "stream": "nothing: responses are read whole",
}


@dataclasses.dataclass(frozen=True)
class ExtractConfig:
    """An extraction: which teacher annotates which examples, how, and at what maximum cost."""

    HEADING = "Extraction"

    extract_dir: str = setting(
        "",
        "Folder of the extraction: annotations, rationales, summary. An extraction that it holds "
        "is continued.",
    )
    extract_splits: tuple[str, ...] = setting(
        ("train",),
        "Splits to annotate. train comes after the validation split and FRACTION, as in training.",
        choices=SPLITS,
    )
    extract_inputs: str = setting(
        "",
        "Unlabelled inputs to annotate besides.",
        choices={
            "": "none.",
            "asdiv": "ASDiv's problems (only with DATASET 'svamp').",
            "file:PATH": "JSON lines of id and input, as INPUT_TEMPLATE makes it (and choices, "
            "where each example has its own).",
        },
    )
    client: str = setting(
        "openai",
        "Where the teacher runs.",
        heading="Teacher",
        choices={
            "openai": "an endpoint with OpenAI's protocol.",
            "batch": "the same protocol's offline batches.",
            "local": "a Hugging Face causal model on this machine.",
            "replay": "nowhere; annotations are read from files.",
        },
    )
    teacher_model: str = setting(
        "", "Name of the model at the endpoint; CLIENT 'local': a folder or 'hf:OWNER/NAME'."
    )
    teacher_url: str = setting(
        "",
        "URL of the endpoint, as 'http://127.0.0.1:8000/v1', or Azure's "
        "'https://NAME.openai.azure.com/openai/v1'; '' = the environment variable OPENAI_BASE_URL, "
        "else OpenAI's.",
    )
    teacher_key: str = setting(
        "OPENAI_API_KEY",
        "Name of the environment variable that holds the API key. The key is never written.",
    )
    teacher_tokenizer: str = setting(
        "",
        "Counts prompt tokens before requests are sent: 'hf:OWNER/NAME' or a tokenizer's folder; "
        "'' = the endpoint's count where it has one, else a marked estimate.",
    )
    context_length: int = setting(
        0,
        "Maximum tokens of prompt and output; 0 = what the endpoint reports, else unchecked.",
        at_least=0,
    )
    prompt_file: str = setting(
        "", "JSON file of exemplars; '' = the shipped file for DATASET.", heading="Prompt"
    )
    prompt_form: str = setting(
        "chat",
        "Form of the prompt.",
        choices={"chat": "exemplars as turns.", "completion": "one text."},
    )
    temperature: float = setting(0.0, "Sampling temperature; 0 = greedy.", at_least=0)
    top_p: float = setting(1.0, "Probability mass to sample from.", above=0, at_most=1)
    samples: int = setting(
        1,
        "Outputs per example. The majority label wins, with the best rationale that agrees.",
        at_least=1,
    )
    max_new_tokens: int = setting(256, "Maximum output tokens.", at_least=1)
    sampling_seed: int = setting(0, "Seed of sampling, where the endpoint takes one.")
    reasoning_effort: str = setting(
        "",
        "How much a reasoning model thinks, in its own words, as 'low'; '' = its default. Thoughts "
        "count as output tokens.",
    )
    extra_body: str = setting(
        "", "More fields of every request, as a JSON object: '{\"top_k\": 20}'; '' = none."
    )
    omit_fields: tuple[str, ...] = setting(
        (),
        "Fields that the endpoint does not take. CLIENT 'openai' finds them by itself. Without "
        "max_tokens, max_completion_tokens is sent.",
        choices=("stop", "temperature", "top_p", "seed", "max_tokens", "max_completion_tokens"),
    )
    hint_wrong: bool = setting(
        False,
        "Ask again with the gold label where the label is wrong or unreadable, to get a rationale. "
        "Training examples only.",
    )
    concurrency: int = setting(16, "Concurrent requests.", heading="Rate", at_least=1)
    requests_per_minute: int = setting(0, "Maximum requests per minute; 0 = unlimited.", at_least=0)
    tokens_per_minute: int = setting(
        0, "Maximum tokens per minute, input and output; 0 = unlimited.", at_least=0
    )
    timeout: float = setting(60.0, "Seconds until a request times out.", above=0)
    retries: int = setting(
        6, "Retries where the endpoint is busy, fails or is unreachable.", at_least=0
    )
    ask_failed_again: bool = setting(
        False,
        "Send requests that failed again, as after the endpoint was mended at the same address. "
        "A failed request is always sent again when the setting that caused it has changed.",
    )
    stop_after_failures: int = setting(
        24,
        "Stop when this many responses at the start all fail for the same reason, or when the "
        "endpoint cuts prompts; 0 = never.",
        at_least=0,
    )
    batch_poll: float = setting(
        60.0, "CLIENT 'batch': seconds between two checks of a batch.", above=0
    )
    price_input: float | None = setting(
        None, "Price per million input tokens; None = unknown.", heading="Budget", at_least=0
    )
    price_output: float | None = setting(
        None, "Price per million output tokens; None = unknown.", at_least=0
    )
    max_cost: float | None = setting(
        None,
        "Maximum cost over all calls of this extraction; None = unlimited.",
        at_least=0,
    )
    max_rows: int | None = setting(
        None,
        "Maximum examples over all calls of this extraction; None = all.",
        at_least=1,
    )
    replay: str = setting(
        "",
        "CLIENT 'replay': 'release' (the paper's outputs) or 'file:PATH' (another extraction's "
        "annotations).",
        heading="Replay and cache",
    )
    answer_cache: str = setting(
        "",
        "Folder of outputs by prompt and endpoint, shared by all extractions; '' = 'answers' "
        "beside the token caches; 'none' = no cache.",
    )

    def __post_init__(self) -> None:
        if storage.is_remote(self.extract_dir):
            raise InputError(
                f"EXTRACT_DIR: got {self.extract_dir!r}, expected a folder on a disk. Annotations "
                "are appended one by one, which an object store does not support."
            )
        if not self.extract_dir:
            raise InputError(
                "EXTRACT_DIR is empty. Name the extraction's folder, as in "
                "--gin.EXTRACT_DIR=teachers/first."
            )
        self._refuse_secrets()
        check(self)
        self._refuse_contradictions()
        _ = self.extra  # raises

    @property
    def decoding(self) -> Decoding:
        """The settings of decoding as one value."""
        return Decoding(self.temperature, self.top_p, self.max_new_tokens, self.sampling_seed)

    @property
    def extra(self) -> str:
        """EXTRA_BODY and REASONING_EFFORT as one JSON object with sorted keys; "" = none.

        Raises InputError where EXTRA_BODY is no JSON object or sets a field of another macro.
        """
        try:
            fields = json.loads(self.extra_body or "{}")
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            raise InputError(
                f"EXTRA_BODY: got {self.extra_body!r}, expected a JSON object, as in "
                "EXTRA_BODY = '{\"top_k\": 20}'."
            )
        if self.reasoning_effort:
            fields = {"reasoning_effort": self.reasoning_effort, **fields}
        for name, macro in _FIELDS_OF_MACROS.items():
            if name in json.loads(self.extra_body or "{}"):
                raise InputError(f"EXTRA_BODY sets {name!r}. Set {macro} instead.")
        return json.dumps(fields, sort_keys=True, ensure_ascii=False) if fields else ""

    def _refuse_secrets(self) -> None:
        """Raises on a key that would be written into ``config.gin``, without showing the key."""
        if not re.fullmatch(r"(?:[A-Z_][A-Z0-9_]*)?", self.teacher_key):
            raise InputError(
                "TEACHER_KEY is not the name of an environment variable (capitals, digits and _). "
                "Put the key into a variable, as OPENAI_API_KEY, and set TEACHER_KEY to its name."
            )
        try:
            address = urllib.parse.urlsplit(self.teacher_url)
        except ValueError:
            raise InputError(
                "TEACHER_URL is not a URL. Write it with scheme and version, as in "
                "'http://127.0.0.1:8000/v1'."
            ) from None
        # Azure's older addresses name their version: ?api-version=2024-10-21.
        is_version = re.fullmatch(r"api-version=[\w.-]+", address.query)
        if "@" in address.netloc or (address.query and not is_version):
            raise InputError(
                "TEACHER_URL holds a user, a password or a query other than api-version. Remove "
                "them, and put the key into the environment variable that TEACHER_KEY names."
            )

    def _refuse_contradictions(self) -> None:
        """Raises InputError on settings that are valid one by one, but not together."""
        if not self.teacher_model and self.client != "replay":
            raise InputError(
                f"TEACHER_MODEL is empty, but CLIENT={self.client!r} needs a model. Set it to the "
                "endpoint's name of the model (CLIENT 'local': a folder or 'hf:OWNER/NAME')."
            )
        if bool(self.replay) != (self.client == "replay"):
            raise InputError(
                f"REPLAY={self.replay!r} does not fit CLIENT={self.client!r}. Set CLIENT='replay' "
                "and REPLAY='release' or 'file:PATH', or set REPLAY=''."
            )
        if self.samples > 1 and self.temperature == 0:
            raise InputError(
                f"SAMPLES={self.samples} with TEMPERATURE=0 pays for the same output "
                f"{self.samples} times. Raise TEMPERATURE, or set SAMPLES=1."
            )
        priced = self.price_input is not None and self.price_output is not None
        if self.max_cost is not None and not priced:
            raise InputError(
                f"MAX_COST={self.max_cost} needs prices. Set PRICE_INPUT and PRICE_OUTPUT, per "
                "million tokens."
            )
        if not self.extract_splits and not self.extract_inputs:
            raise InputError(
                "EXTRACT_SPLITS and EXTRACT_INPUTS are both empty. Name what to annotate."
            )
