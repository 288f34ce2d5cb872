"""Text to token ids and back, without TensorFlow.

Every vocabulary has T5's fixed ids (0 padding, 1 EOS, 2 unknown) and turns the separator ``</s>``
inside a text into EOS, tokenising the parts on their own, as Hugging Face's T5 tokenizer does.
"""

from __future__ import annotations

import abc
import functools
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterable, Sequence

import sentencepiece
from absl import logging
from etils import epath

from stepdistill_jax import hub, storage
from stepdistill_jax.data import added_tokens
from stepdistill_jax.data.added_tokens import TOKENIZER_JSON
from stepdistill_jax.data.sources import demo
from stepdistill_jax.spec import EOS_ID, PAD_ID, SEPARATOR, UNK_ID, InputError

ENVIRONMENT = "STEPDISTILL_VOCABULARY"
# T5 appends this many sentinels to its pieces; the last is <extra_id_0>.
T5_SENTINELS = 100
SENTENCEPIECE_FILE = "spiece.model"
# The T5, T5 1.1 and FLAN-T5 repositories of the hub all hold the same spiece.model.
_T5_REPOSITORIES = re.compile(
    r"((google-t5/)?t5-(small|base|large|3b|11b))|"
    r"(google/(t5-v1_1|flan-t5)-(small|base|large|xl|xxl))"
)
_T5_SHA256 = "d60acb128cf7b7f2536e8f38a5b18a05535c9e14c7a355904270e15b0945ea86"
_CHOICES = (
    "'demo', 'bytes', a path to a SentencePiece model or a folder with a spiece.model, or "
    "'hf:OWNER/NAME'"
)


class Vocabulary(abc.ABC):
    """A tokenizer.

    Attributes:
        size: ids in use, sentinels included; an embedding may be larger, never smaller.
        fingerprint: sha256 of all that decides the ids.
    """

    size: int
    fingerprint: str

    @abc.abstractmethod
    def encode_part(self, text: str) -> list[int]:
        """Ids of a text in which ``</s>`` means nothing; no EOS at the end."""

    @abc.abstractmethod
    def decode_ids(self, ids: Sequence[int]) -> str:
        """Text of ids among which are neither padding nor EOS."""

    def unknown_runs(self, text: str) -> list[str]:
        """What becomes an unknown token, in order; the text may be normalised."""
        return []

    def encode(self, text: str) -> list[int]:
        """Ids of a text, with EOS for every ``</s>`` in it and none at the end."""
        first, *rest = text.split(SEPARATOR)
        ids = self.encode_part(first)
        for part in rest:
            ids.append(EOS_ID)
            ids.extend(self.encode_part(part))
        return ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first EOS, without padding; ids beyond `size` read as unknown."""
        kept: list[int] = []
        for token in map(int, ids):
            if token == EOS_ID:
                break
            if token != PAD_ID:
                kept.append(token if 0 <= token < self.size else UNK_ID)
        return self.decode_ids(kept)


class SentencePieceVocabulary(Vocabulary):
    """A SentencePiece model followed by `sentinels` ids, which no text encodes to.

    Attributes:
        model: the serialised model, as its file holds it.
    """

    def __init__(self, model: bytes, sentinels: int, where: str) -> None:
        self.model = model
        self._processor = sentencepiece.SentencePieceProcessor()
        try:
            self._processor.LoadFromSerializedProto(model)
        except RuntimeError as error:
            raise InputError(
                f"{where}: not a SentencePiece model ({len(model)} bytes). Download it again, or "
                f"name {_CHOICES}."
            ) from error
        p = self._processor
        fixed = (p.pad_id(), p.eos_id(), p.unk_id())
        if fixed != (PAD_ID, EOS_ID, UNK_ID):
            raise InputError(
                f"{where}: wrong ids of padding, EOS and unknown: got {fixed}, expected "
                f"{(PAD_ID, EOS_ID, UNK_ID)}. Train the model with pad_id=0, eos_id=1, unk_id=2."
            )
        self._pieces = p.GetPieceSize()
        # Some models (mT5's) already hold their sentinels as pieces.
        is_complete = any(p.PieceToId(s) != UNK_ID for s in ("<extra_id_0>", "▁<extra_id_0>"))
        self.size = self._pieces + (0 if is_complete else sentinels)
        self.fingerprint = _sha256(b"sentencepiece", str(self.size).encode(), model)

    def encode_part(self, text: str) -> list[int]:
        """See `Vocabulary.encode_part`."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

    def unknown_runs(self, text: str) -> list[str]:
        """See `Vocabulary.unknown_runs`."""
        runs = []
        for part in text.split(SEPARATOR):
            pieces = zip(self._processor.EncodeAsPieces(part), self.encode_part(part), strict=True)
            runs += [piece.replace("▁", "") for piece, token in pieces if token == UNK_ID]
        return runs

    def decode_ids(self, ids: Sequence[int]) -> str:
        """See `Vocabulary.decode_ids`; a sentinel reads ``<extra_id_N>``."""
        words: list[str] = []
        run: list[int] = []
        for token in ids:
            if token < self._pieces:
                run.append(token)
                continue
            words += [self._processor.DecodeIds(run), f"<extra_id_{self.size - 1 - token}>"]
            run = []
        words.append(self._processor.DecodeIds(run))
        return " ".join(word for word in words if word)

    def pieces(self) -> list[str]:
        """Every piece, by id; sentinels are not among them."""
        return [self._processor.IdToPiece(token) for token in range(self._pieces)]


class ByteVocabulary(Vocabulary):
    """UTF-8 bytes, three ids up (Xue et al. 2022, ByT5)."""

    offset = 3
    size = offset + 256

    def __init__(self) -> None:
        self.fingerprint = _sha256(b"bytes", str(self.size).encode())

    def encode_part(self, text: str) -> list[int]:
        """See `Vocabulary.encode_part`."""
        return [byte + self.offset for byte in text.encode("utf-8")]

    def decode_ids(self, ids: Sequence[int]) -> str:
        """See `Vocabulary.decode_ids`; bytes that are no UTF-8 are left out."""
        values = [token - self.offset for token in ids if token >= self.offset]
        return bytes(values).decode("utf-8", errors="ignore")


def _sha256(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "big"))
        digest.update(part)
    return digest.hexdigest()


def load_vocabulary(name: str = "", setting: str = "VOCABULARY") -> Vocabulary:
    """The vocabulary of a name; loaded once a process.

    Args:
        name: ``demo``, ``bytes``, the path of a SentencePiece model (T5's, or one trained with
            T5's fixed ids; 100 sentinels are appended as T5 has them) or of a folder with a
            ``spiece.model``, ``hf:OWNER/NAME``, or "" for the environment variable
            STEPDISTILL_VOCABULARY. A hub's file comes from the variable too where it names the same
            bytes, else from the local cache, else from the hub.
        setting: the macro or flag that `name` stands in, for messages.

    Raises:
        InputError: nothing is named, the file is missing or is no such model, or the hub or the
            store that it lies on cannot be used.
    """
    environment = os.environ.get(ENVIRONMENT, "")
    if not (name or environment):
        raise InputError(
            f"VOCABULARY is empty and {ENVIRONMENT} is not set. Set one of them to {_CHOICES}."
        )
    return _load(name or environment, setting if name else ENVIRONMENT, environment)


def local_vocabulary(name: str = "") -> Vocabulary | None:
    """As `load_vocabulary`, but None where that would fail or need the hub."""
    environment = os.environ.get(ENVIRONMENT, "")
    name = name or environment
    try:
        if _is_on_hub(name) and _same_file(name, environment) is None:
            repository = name.removeprefix(hub.PREFIX)
            if hub.cached(repository, (SENTENCEPIECE_FILE,)) is None:
                return None
        return load_vocabulary(name)
    except ValueError:  # an InputError is one
        return None


@functools.lru_cache(maxsize=8)
def _load(name: str, setting: str, environment: str) -> Vocabulary:
    if name == "bytes":
        return ByteVocabulary()
    if name == "demo":
        demo_words = SentencePieceVocabulary(_demo_model(), 0, where="the demo's vocabulary")
        # The model's bytes differ from one release of SentencePiece to the next, its pieces do not.
        demo_words.fingerprint = _sha256(b"demo", *map(str.encode, demo_words.pieces()))
        return demo_words
    storage.check(setting, name)
    path = _hub_file(name, setting, environment) if _is_on_hub(name) else _file(name)
    if not path.is_file():
        if (path.parent / TOKENIZER_JSON).is_file() and path.name == SENTENCEPIECE_FILE:
            raise InputError(
                f"{setting}={name!r}: the folder has tokenizer.json but no {path.name}, which is "
                "read. Copy it from the checkpoint that this one was trained from; T5, T5 1.1 and "
                "FLAN-T5 share that of hf:google/t5-v1_1-base."
            )
        raise InputError(f"{setting}={name!r}: no file {path}. Set {setting} to {_CHOICES}.")
    names_file = path == epath.Path(name).expanduser()
    # A folder or a repository is a whole tokenizer; the published T5s have no added tokens.
    if not names_file and not is_published_t5(name):
        added_tokens.refuse(f"{setting}={name!r}", _beside(name, path, setting))
    vocabulary = SentencePieceVocabulary(path.read_bytes(), T5_SENTINELS, f"{setting}={name!r}")
    logging.info("vocabulary %s: %s, %d ids", name, path, vocabulary.size)
    return vocabulary


def is_published_t5(name: str) -> bool:
    """Whether a name is a T5, T5 1.1 or FLAN-T5 repository of Google's on the hub."""
    return _is_on_hub(name) and bool(_T5_REPOSITORIES.fullmatch(name.removeprefix(hub.PREFIX)))


def _beside(name: str, path: epath.Path, setting: str) -> Callable[[str], epath.Path | None]:
    """Finds other files of the tokenizer whose model is `path`."""

    def find(file: str) -> epath.Path | None:
        if _is_on_hub(name) and not (path.parent / file).is_file():
            return hub.optional(setting, name.removeprefix(hub.PREFIX), file)
        return path.parent / file if (path.parent / file).is_file() else None

    return find


def _file(name: str) -> epath.Path:
    path = epath.Path(name.removeprefix(hub.PREFIX)).expanduser()
    return path / SENTENCEPIECE_FILE if path.is_dir() else path


def _is_on_hub(name: str) -> bool:
    folder = epath.Path(name.removeprefix(hub.PREFIX)).expanduser()
    return name.startswith(hub.PREFIX) and not folder.is_dir()


def _hub_file(name: str, setting: str, environment: str) -> epath.Path:
    """The ``spiece.model`` of ``hf:OWNER/NAME``."""
    if path := _same_file(name, environment):
        return path
    repository = name.removeprefix(hub.PREFIX)
    variable = setting
    if _T5_REPOSITORIES.fullmatch(repository):
        variable = ENVIRONMENT
        if environment not in ("", name):
            logging.warning(
                "%s=%r is not the vocabulary of %s and is not used; set VOCABULARY to use it",
                *(ENVIRONMENT, environment, repository),
            )
    remedy = f"set {variable}=FOLDER"
    return hub.find(setting, repository, (SENTENCEPIECE_FILE,), remedy, SENTENCEPIECE_FILE)


def _same_file(name: str, environment: str) -> epath.Path | None:
    """STEPDISTILL_VOCABULARY's file, where its bytes are those of ``hf:OWNER/NAME``."""
    repository = name.removeprefix(hub.PREFIX)
    if not environment or not _T5_REPOSITORIES.fullmatch(repository) or _is_on_hub(environment):
        return None
    try:
        storage.check(ENVIRONMENT, environment)
        path = _file(environment)
        same = path.is_file() and hashlib.sha256(path.read_bytes()).hexdigest() == _T5_SHA256
    except (InputError, OSError):  # The run does not need the variable: the hub has the file.
        return None
    return path if same else None


def _demo_model() -> bytes:
    """A word-level SentencePiece model of every word of the demo, with the same ids everywhere."""
    words = demo.words()
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.Train(
        # SentencePiece orders pieces by frequency: each word once less than the one before it.
        sentence_iterator=iter(
            " ".join(words[: len(words) - count]) for count in range(len(words))
        ),
        model_writer=model,
        model_type="word",
        vocab_size=len(words) + 3,
        pad_id=PAD_ID,
        eos_id=EOS_ID,
        unk_id=UNK_ID,
        bos_id=-1,
        # The default drops words whose letters are rare.
        character_coverage=1.0,
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()
