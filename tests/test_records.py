import bz2
import codecs
import csv
import gzip
import io
import json
import lzma
import os
import pathlib
import re
import subprocess
import sys

import pandas
import pytest

from stepdistill_jax.records import json_fault, read_jsonl
from stepdistill_jax.spec import InputError


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


def refused(path):
    with pytest.raises(InputError) as error:
        list(read_jsonl(path))
    return str(error.value)


ROWS = [{"input": "a, \u00e9", "label": "None"}, {"input": "two\nlines", "label": "1"}]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


def csv_text(delimiter=","):
    file = io.StringIO()
    writer = csv.DictWriter(file, ROWS[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(ROWS)
    return file.getvalue().encode()


def parquet():
    file = io.BytesIO()
    pandas.DataFrame(ROWS).to_parquet(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (csv_text, "a CSV file"),
        (lambda: codecs.BOM_UTF8 + csv_text(";"), "a CSV file"),
        (lambda: csv_text("\t"), "a TSV file"),
        (lambda: json.dumps(ROWS).encode(), "a JSON array"),
        (lambda: codecs.BOM_UTF8 + json.dumps(ROWS, indent=1).encode(), "a JSON array"),
        (parquet, "a Parquet file"),
        (lambda: gzip.compress(LINES), "a gzip file"),
        (lambda: bz2.compress(LINES), "a bzip2 file"),
        (lambda: lzma.compress(LINES), "an xz file"),
        (lambda: LINES.decode().encode("utf-16"), "UTF-16 text"),
        (lambda: LINES.decode().encode("utf-16-le"), "UTF-16 text"),
        (lambda: LINES.decode().encode("utf-16-be"), "UTF-16 text"),
        (lambda: "".join(f"{row}\n" for row in ROWS).encode(), "Python's text of dicts"),
    ],
)
def test_another_format_is_named_with_a_command_that_converts_it(tmp_path, content, name):
    path = tmp_path / "my data.jsonl"
    path.write_bytes(content())
    start, command = refused(path).split("Convert it, and name the new file: ")
    assert start == f"my data.jsonl: {name}, expected JSON lines (an object a line). "
    programs = f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    subprocess.run(command, shell=True, check=True, env={**os.environ, "PATH": programs})
    rows = [row for _, row in read_jsonl(tmp_path / "my data_lines.jsonl")]
    assert rows == ROWS


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04...", "a ZIP archive or a spreadsheet, expected JSON lines"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "a Git LFS pointer, expected"),
        (b"<!DOCTYPE html>\n<html>", "an HTML or XML file, expected"),
        (b'{\n "input": "a"\n}\n', "JSON over several lines, expected .*: jq -c . < "),
        # A damaged line is no other format.
        (b'"input": "a", "label": "b"}\n', r"1: not a JSON object \(Extra data at column 8\)"),
        (b'{"input": "a"\n', "1: not a JSON object .*the line is damaged or truncated. Fix or"),
        (b"hello\n", "1: not a JSON object"),
    ],
)
def test_what_no_command_converts(tmp_path, content, message):
    (tmp_path / "data.jsonl").write_bytes(content)
    assert re.match(f"data.jsonl: {message}|data.jsonl:{message}", refused(tmp_path / "data.jsonl"))


def test_a_byte_order_mark_is_skipped_also_where_files_were_joined(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(codecs.BOM_UTF8 + LINES + codecs.BOM_UTF8 + LINES)
    assert [row for _, row in read_jsonl(path)] == 2 * ROWS


@pytest.mark.parametrize(
    ("value", "fault"),
    [
        ("1" * 5000, "a number has too many digits"),
        ("-" + "9" * 4301, "a number has too many digits"),
        ("[" * 100_000 + "]" * 100_000, "its brackets are nested too deeply"),
        ('{"a":' * 100_000 + "1" + "}" * 100_000, "its brackets are nested too deeply"),
        ('["\\u00e9",' * 3000 + "1" + "]" * 3000, "its brackets are nested too deeply"),
    ],
)
def test_numbers_and_brackets_beyond_the_parser_are_one_line(tmp_path, value, fault):
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"input": "a"}}\n{{"input": "b", "label": {value}}}\n')
    assert refused(path) == f"data.jsonl:2: not a JSON object ({fault}). Fix or remove the line."
    path.write_text(f'{{"input": "a", "label": {"1" * 4300}}}\n')
    assert len(list(read_jsonl(path))) == 1
