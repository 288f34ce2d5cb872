import json

import pytest

from stepdistill_jax.records import json_fault


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"a": 1', "the end of the line"),
        ('{"a": 1\n', "the end of the line"),
        ('{"a" 1}', "column 6"),
        ('{"a": 1} {}', "column 10"),
        ("{\n'a': 1}", "column 1"),
    ],
)
def test_the_place_of_a_fault_is_in_its_line(text, where):
    with pytest.raises(json.JSONDecodeError) as error:
        json.loads(text)
    assert json_fault(error.value).endswith(f" at {where}")
