"""Answers by content, shared by all extractions: equal questions are paid for once.

An entry is a small JSON file named by a sha256 of all that decides the answer: the endpoint's
address (another one may have another model of the same name), and what is in `Request.key`: the
model, the prompt with its row, the decoding, the number of the sample.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import pathlib

from absl import logging

from stepdistill_jax import records
from stepdistill_jax.teacher.requests import Completion

NONE = "none"
# Beside the token caches.
DEFAULT_FOLDER = "answers"


class ResponseCache:
    """The cache; one that has no folder holds nothing.

    Attributes:
        folder: None = no cache.
        source: where answers come from: the endpoint's address.
        damaged: entries that could not be read, and were passed over.
    """

    def __init__(self, folder: pathlib.Path | None, source: str) -> None:
        self.folder = folder
        self.source = source
        self.damaged = 0

    def get(self, key: str) -> Completion | None:
        """The answer to an equal question; an entry that is damaged is none."""
        if self.folder is None:
            return None
        path = self._path(key)
        try:
            found = json.loads(path.read_bytes())
            if found.pop("key") != key:
                raise ValueError("it is of another question")
            return Completion(**found)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.damaged += 1
            logging.warning("%s: damaged (%s), so the question is asked again", path, error)
            return None

    def put(self, key: str, completion: Completion) -> None:
        """Keeps an answer, where there is a folder."""
        if self.folder is not None:
            row = {"key": key, **dataclasses.asdict(completion)}
            records.write_atomic(self._path(key), json.dumps(row) + "\n")

    def _path(self, key: str) -> pathlib.Path:
        assert self.folder is not None
        name = hashlib.sha256(f"{self.source}\n{key}".encode()).hexdigest()
        return self.folder / name[:2] / f"{name}.json"
