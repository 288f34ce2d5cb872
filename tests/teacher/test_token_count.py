"""Prompt tokens by the teacher's own tokenizer, against a count by hand; prompts too long."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import token_count
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Decoding, Message, Request

TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and no_system %}"
    "{{ raise_exception('no system role') }}{% endif %}"
    "<turn> {{ m['role'] }} {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<turn> assistant {% endif %}"
)


def config(**changes):
    return ExtractConfig(**{"extract_dir": "x", "teacher_model": "m", **changes})


def request(prompt="", *messages):
    turns = tuple(Message(role, content) for role, content in messages)
    return Request("7", "answer", 0, "m", turns, prompt, (), Decoding())


CHAT = request("", ("system", "be brief"), ("user", "a b c"))


@pytest.fixture
def folder(tmp_path):
    """A tokenizer of whole words that begins every text with <s>."""
    words = ["<s>", "<unk>", "<turn>", "<end>", "a", "b", "c"]
    tokenizer = tokenizers.Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def configure(folder, template):
    content = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "<unk>"}
    content |= {"chat_template": template} if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(content))
    return token_count.tokenizer_counter(config(teacher_tokenizer=str(folder)))


def test_a_text_and_a_completion_are_counted_as_they_are_sent(folder):
    count = configure(folder, "")
    assert count.text("a b c b") == 4
    assert count.request(request("a b c b")) == 5  # the model reads <s> before it


def test_a_chat_is_counted_with_its_template(folder):
    count = configure(folder, TEMPLATE)
    assert count.is_exact_chat
    # <turn> system be brief <end> <turn> user a b c <end> <turn> assistant
    assert count.request(CHAT) == 5 + 6 + 2


def test_without_a_template_every_turn_takes_a_share(folder):
    count = configure(folder, "")
    assert not count.is_exact_chat
    assert count.request(CHAT) == 2 + 3 + 3 * token_count.TURN


def test_a_template_that_refuses_the_prompt_is_said_before_anything_is_sent(folder):
    count = configure(folder, TEMPLATE.replace("no_system", "true"))
    with pytest.raises(
        InputError, match=r"rejects the prompt \(no system role\).*PROMPT_FORM='com"
    ):
        count.request(CHAT)


def test_a_tokenizer_that_is_not_there_or_damaged_is_said(folder, tmp_path_factory):
    assert token_count.tokenizer_counter(config()) is None
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(
        InputError, match=r"TEACHER_TOKENIZER='.*empty.*': has no tokenizer.json or"
    ):
        token_count.tokenizer_counter(config(teacher_tokenizer=str(empty)))
    with pytest.raises(
        InputError, match=r"TEACHER_TOKENIZER='hf:no/such': tokenizer.json or .*not"
    ):
        token_count.tokenizer_counter(config(teacher_tokenizer="hf:no/such"))
    (folder / "tokenizer.json").write_text('{"model": 3')
    with pytest.raises(InputError, match=r"TEACHER_TOKENIZER=.* cannot be loaded .*\. Set it to"):
        configure(folder, "")


def test_a_prompt_that_is_too_long_is_refused_by_how_much():
    limited = config(context_length=1000, max_new_tokens=200)
    token_count.check_context(800, limited, 1000, "d.json:3")
    with pytest.raises(
        InputError,
        match=r"^d.json:3: prompt of 805 tokens and MAX_NEW_TOKENS=200 exceed the context of m, "
        r"1,000 tokens \(CONTEXT_LENGTH\), by 5\. "
        r"Set MAX_NEW_TOKENS=195 or less, remove exemplars \(PROMPT_FILE\) or use a model",
    ):
        token_count.check_context(805, limited, 1000, "d.json:3")
    with pytest.raises(InputError, match=r"1,000 tokens .*, by 1,200\. Remove exemplars"):
        token_count.check_context(2000, limited, 1000, "d.json:3")


def test_the_endpoints_context_is_named_where_nothing_is_set():
    unset = config(max_new_tokens=200)
    token_count.check_context(800, unset, 1000, "d.json:3")
    with pytest.raises(InputError, match=r"m, 1,000 tokens \(reported by the endpoint\), by 1\."):
        token_count.check_context(801, unset, 1000, "d.json:3")
