import pytest

from stepdistill_jax.run import load
from stepdistill_jax.spec import InputError
from stepdistill_jax.train import preflight_hosts

ALIKE = {"jax": "0.10.2", "libtpu": "0.0.42", "XLA_FLAGS": ""}


def test_hosts_that_say_the_same_pass():
    preflight_hosts.refuse_different({"a": ALIKE, "b": dict(ALIKE)})


def test_a_host_with_another_version_is_named_with_both_values():
    facts = {"a": ALIKE, "b": ALIKE | {"jax": "0.9.1"}, "c": ALIKE}
    with pytest.raises(
        InputError, match=r"^b has jax 0\.9\.1, 2 others have 0\.10\.2\. Set up all hosts alike"
    ):
        preflight_hosts.refuse_different(facts)


def test_all_that_differs_is_told_at_once():
    facts = {"a": ALIKE, "b": {"jax": "0.9.1", "libtpu": "0.0.42", "XLA_FLAGS": "--x"}}
    with pytest.raises(
        InputError,
        match=r"b has jax 0\.9\.1, a has 0\.10\.2; b has XLA_FLAGS --x, a has unset\. Set up",
    ):
        preflight_hosts.refuse_different(facts)


def test_clocks_may_be_seconds_apart_and_no_more():
    assert preflight_hosts.clock_skew({"a": 100.0, "b": 103.0, "c": 101.0}) == 3.0
    with pytest.raises(
        InputError, match=r"clock of b is 60\.0 s ahead of that of a, more than 5 s"
    ):
        preflight_hosts.clock_skew({"a": 100.0, "b": 160.0, "c": 101.0})


def test_settings_are_compared_but_for_the_folders_that_every_host_has_of_its_own():
    def software(*overrides):
        return preflight_hosts.software(load.parse(["demo.gin"], overrides))

    facts = {"a": software("DATA_DIR=x", "CACHE_DIR=x"), "b": software()}
    preflight_hosts.refuse_different(facts)
    with pytest.raises(InputError, match=r"b has SEED 4, a has 0"):
        preflight_hosts.refuse_different(facts | {"b": software("SEED=4")})


def test_every_local_device_computes():
    assert preflight_hosts.use_devices() == {"devices": "8 x cpu", "memory of each": "unknown"}
