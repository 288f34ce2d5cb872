"""The cache of answers: what an equal question is."""

from stepdistill_jax.teacher.clients import source
from stepdistill_jax.teacher.config import ExtractConfig
from stepdistill_jax.teacher.requests import Completion
from stepdistill_jax.teacher.response_cache import ResponseCache

ANSWER = Completion("because. So the answer is yes.", "stop", 10, 7, "m-1", 0.5)
KEY = "0" * 64


def test_an_answer_comes_back_whole(tmp_path):
    ResponseCache(tmp_path, "http://here/v1").put(KEY, ANSWER)
    assert ResponseCache(tmp_path, "http://here/v1").get(KEY) == ANSWER
    assert ResponseCache(tmp_path, "http://here/v1").get("1" * 64) is None


def test_a_model_of_the_same_name_elsewhere_answers_for_itself(tmp_path):
    ResponseCache(tmp_path, "http://here/v1").put(KEY, ANSWER)
    assert ResponseCache(tmp_path, "http://there/v1").get(KEY) is None


def test_the_address_is_that_of_the_endpoint_and_shows_no_password(monkeypatch):
    def named(url):
        return ExtractConfig(extract_dir="out", teacher_model="m", teacher_url=url)

    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    assert source(named("http://here:8000/v1/")) == "http://here:8000/v1"
    assert source(named("")) == "https://api.openai.com/v1"
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@there/v1")
    assert source(named("")) == "http://there/v1"
