"""Completions by request content, shared by all extractions: equal requests are paid for once.

An entry is a small JSON file, named by a sha256 of all that decides the completion: the endpoint's
address (another one may serve another model of the same name) and `Request.key`.
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
    """The cache; without a folder it is always empty.

    Attributes:
        source: where completions come from: the endpoint's address.
        damaged: number of entries that could not be read, and were ignored.
    """

    def __init__(self, folder: pathlib.Path | None, source: str) -> None:
        self.folder = folder
        self.source = source
        self.damaged = 0

    def get(self, key: str) -> Completion | None:
        """The completion of an equal request; None where there is none, or its entry is damaged."""
        if self.folder is None:
            return None
        path = self._path(self.folder, key)
        try:
            entry = json.loads(path.read_bytes())
            if entry.pop("key") != key:
                raise ValueError("it is of another request")
            return Completion(**entry)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.damaged += 1
            logging.warning("%s: damaged (%s), so the request is sent again", path, error)
            return None

    def put(self, key: str, completion: Completion) -> None:
        """Writes a completion, where there is a folder."""
        if self.folder is not None:
            entry = {"key": key, **dataclasses.asdict(completion)}
            records.write_atomic(self._path(self.folder, key), json.dumps(entry) + "\n")

    def _path(self, folder: pathlib.Path, key: str) -> pathlib.Path:
        name = hashlib.sha256(f"{self.source}\n{key}".encode()).hexdigest()
        return folder / name[:2] / f"{name}.json"
