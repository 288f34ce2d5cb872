"""A tiny random model with a tokenizer of its own: what a batch may and may not change."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import sys

import pytest

from stepdistill_jax.data.config import DataConfig
from stepdistill_jax.spec import InputError
from stepdistill_jax.teacher import clients
from stepdistill_jax.teacher.clients import failures, local
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import (
    ANSWER,
    Completion,
    Decoding,
    EndpointError,
    Message,
    Request,
    RequestError,
)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LENGTH = 128
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'system' and m['content'] == 'no' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<{{ m['role'] }}>{{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A Llama of two layers over characters, its weights large enough to tell inputs apart."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("teacher")
    characters = sorted("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,?:<>\n")
    vocabulary = {token: place for place, token in enumerate(["<pad>", "</s>", *characters])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.decoder = decoders.Fuse()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="?"
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=LENGTH,
        eos_token_id=1,
        pad_token_id=0,
        initializer_range=0.5,
    )
    model = transformers.LlamaForCausalLM(config)
    # A maker's preference, which must not come into what the user asked for.
    model.generation_config.update(do_sample=True, temperature=0.3, repetition_penalty=1.5)
    model.save_pretrained(folder)
    return folder


def opened(folder, **fields):
    defaults = {"extract_dir": "x", "client": "local", "prompt_form": "completion"}
    extract = ExtractConfig(**{**defaults, "teacher_model": str(folder), **fields})
    return clients.open(extract, DataConfig(dataset="demo"))


def question(text: str, **fields) -> Request:
    decoding = Decoding(max_new_tokens=24)
    shared = Request("0", ANSWER, 0, "local", (), text, (), decoding)
    return dataclasses.replace(shared, **fields)


def ask(client, *requests: Request) -> list[Completion | BaseException]:
    """All at once, then the client is closed."""

    async def run():
        asked = map(client.complete, requests)
        outcomes = await asyncio.gather(*asked, return_exceptions=True)
        await client.close()
        return outcomes

    return asyncio.run(run())


def texts(outcomes) -> list[str]:
    return [outcome.text for outcome in outcomes]


QUESTIONS = [f"Q: {'why ' * n}is it {n}?\nA:" for n in range(7)]


@pytest.fixture(scope="module")
def greedy(model_dir) -> list[Completion]:
    """Each question alone."""
    return [ask(opened(model_dir), question(text))[0] for text in QUESTIONS]


def test_greedy_is_the_largest_logit_at_each_step(model_dir, greedy):
    """Against a loop over whole forward passes without a cache."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tokens = tokenizer(QUESTIONS[2])["input_ids"]
    read = len(tokens)
    with torch.no_grad():
        while len(tokens) < read + 24 and tokens[-1] != 1:
            tokens.append(int(model(torch.tensor([tokens])).logits[0, -1].argmax()))
    written = tokens[read:]
    found = greedy[2]
    assert found.text == tokenizer.decode(written, skip_special_tokens=True)
    assert found.prompt_tokens == read == len(QUESTIONS[2])
    assert found.completion_tokens == len([token for token in written if token != 1])
    assert found.finish_reason == ("stop" if 1 in written else "length")


def test_a_batch_writes_what_each_row_alone_would(model_dir, greedy):
    assert len(set(texts(greedy))) > 3  # else equality would show nothing
    for most in (16, 3):
        client = opened(model_dir, concurrency=most)
        assert texts(ask(client, *map(question, QUESTIONS))) == texts(greedy)


def test_waiting_requests_share_batches_of_concurrency(model_dir, monkeypatch):
    sizes = []
    generate = local.LocalClient._generate
    monkeypatch.setattr(
        local.LocalClient, "_generate", lambda s, b: sizes.append(len(b)) or generate(s, b)
    )
    stop = question("Q: what?\nA:", stop=("e",))
    ask(opened(model_dir, concurrency=3), *map(question, QUESTIONS), stop)
    assert sizes == [3, 3, 1, 1]


def test_samples_depend_on_the_request_and_not_on_the_batch(model_dir):
    decoding = Decoding(temperature=1.0, top_p=0.95, max_new_tokens=16)
    requests = [
        question(QUESTIONS[1], sample=sample, decoding=dataclasses.replace(decoding, seed=sample))
        for sample in range(6)
    ]
    together = texts(ask(opened(model_dir), *requests))
    alone = [ask(opened(model_dir), request)[0].text for request in requests]
    assert together == alone
    assert len(set(together)) == 6


def test_samples_are_drawn_with_the_softmax_of_temperature_and_top_p():
    """Logits log(8, 4, 2, 1, 1) at temperature 2: weights 8**.5, ...; 0.7 keeps three of them."""
    decoding = Decoding(temperature=2.0, top_p=0.7)
    requests = [question("x", decoding=dataclasses.replace(decoding, seed=n)) for n in range(6000)]
    scores = torch.log(torch.tensor([8.0, 4.0, 2.0, 1.0, 1.0])).repeat(6000, 1)
    for step in local._sampler(requests):
        scores = step(torch.zeros(6000, 1, dtype=torch.long), scores)
    drawn = collections.Counter(scores.argmax(-1).tolist())
    weights = [8**0.5, 4**0.5, 2**0.5]
    for token, weight in enumerate(weights):
        expected = weight / sum(weights)
        # Four standard errors.
        assert abs(drawn[token] / 6000 - expected) < 4 * (expected * (1 - expected) / 6000) ** 0.5
    assert set(drawn) == {0, 1, 2}


def test_an_answer_ends_before_a_stop_text(model_dir, greedy):
    found = max(greedy, key=lambda completion: len(completion.text))
    text, stop = found.text, found.text[6:9]
    cut = text.index(stop)
    asked = QUESTIONS[greedy.index(found)]
    alone, *others = ask(
        opened(model_dir), *[question(t, stop=("#never#", stop)) for t in (asked, *QUESTIONS)]
    )
    assert (alone.text, alone.finish_reason) == (text[:cut], "stop")
    assert cut < alone.completion_tokens <= cut + 3
    for completion, whole in zip(others, greedy, strict=True):
        assert completion.text == whole.text.split(stop)[0]


def test_chat_form_is_the_models_template(model_dir, greedy):
    turns = (Message("system", "Be short."), Message("user", "why?"))
    chat = question("", messages=turns)
    plain = question("<system>Be short.\n<user>why?\n<assistant>")
    both = ask(opened(model_dir, prompt_form="chat"), chat, plain)
    assert both[0].text == both[1].text
    assert both[0].prompt_tokens == len("<system>Be short.\n<user>why?\n<assistant>")


def test_a_template_that_refuses_the_prompt_stops_all(model_dir):
    turns = (Message("system", "no"), Message("user", "why?"))
    (came,) = ask(opened(model_dir, prompt_form="chat"), question("", messages=turns))
    assert isinstance(came, EndpointError)
    assert "System role not supported" in str(came)
    assert "PROMPT_FORM='completion'" in str(came)


def test_too_long_says_by_how_much(model_dir):
    fits, over = ask(
        opened(model_dir), question("a" * (LENGTH - 24)), question("a" * (LENGTH - 20))
    )
    assert isinstance(fits, Completion)
    assert isinstance(over, RequestError)
    assert over.reason == failures.CONTEXT
    assert "exceed the model's context of 128 by 4" in over.detail


def test_closing_ends_what_is_being_written(model_dir):
    async def run():
        client = opened(model_dir)
        slow = asyncio.create_task(client.complete(question("a")))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        client._closing.set()
        await asyncio.gather(slow, return_exceptions=True)
        await client.close()
        return slow

    slow = asyncio.run(run())
    failed = slow.exception()
    assert isinstance(failed, RequestError) or slow.result().completion_tokens <= 1


def test_what_the_model_says_of_itself(model_dir):
    extract = ExtractConfig(extract_dir="x", client="local", teacher_model=str(model_dir))
    assert clients.context_length(extract) == LENGTH
    assert clients.token_counter(extract)("abc de") == 6


def test_without_a_chat_template(model_dir, tmp_path):
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes((model_dir / "config.json").read_bytes())
    with pytest.raises(InputError, match=r"no chat template\. Set PROMPT_FORM='completion'"):
        opened(tmp_path, prompt_form="chat")


def test_what_is_no_model(tmp_path):
    with pytest.raises(InputError, match=r"not a folder with a config\.json.*'hf:OWNER/NAME'"):
        opened(tmp_path)
    with pytest.raises(InputError, match=r"TEACHER_MODEL='hf:no-one/nothing': cannot be loaded"):
        opened("hf:no-one/nothing")


def test_without_torch(model_dir, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(InputError, match=r"CLIENT='local' needs torch.*pip install torch"):
        local._from_pretrained("AutoModelForCausalLM", str(model_dir))
