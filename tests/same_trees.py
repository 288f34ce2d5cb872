import numpy as np

from stepdistill_jax.checkpoint import names


def assert_same(actual, expected):
    actual, expected = names.flat(actual), names.flat(expected)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(actual[name], value, err_msg=name)
