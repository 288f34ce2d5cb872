import numpy as np

from stepdistill_jax.checkpoint import names


def assert_same(found, expected):
    found, expected = names.flat(found), names.flat(expected)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
