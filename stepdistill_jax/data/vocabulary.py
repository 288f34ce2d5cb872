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
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from stepdistill_jax import hub, storage
from stepdistill_jax.data.sources import demo
from stepdistill_jax.spec import EOS_ID, PAD_ID, SEPARATOR, UNK_ID, InputError

ENVIRONMENT = "STEPDISTILL_VOCABULARY"
# T5 appends this many sentinels to its pieces; the last is <extra_id_0>.
T5_SENTINELS = 100
SENTENCEPIECE_FILE = "spiece.model"
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
                f"{where}: not a SentencePiece model ({len(model)} bytes); fetch it again, or set "
                f"VOCABULARY to one of {_CHOICES}"
            ) from error
        p = self._processor
        found = (p.pad_id(), p.eos_id(), p.unk_id())
        if found != (PAD_ID, EOS_ID, UNK_ID):
            raise InputError(
                f"{where}: padding, EOS and unknown have the ids {found}, expected "
                f"{(PAD_ID, EOS_ID, UNK_ID)} as in T5; train the model with pad_id=0, eos_id=1, "
                "unk_id=2"
            )
        self._pieces = p.GetPieceSize()
        # Some models (mT5's) already hold their sentinels as pieces.
        held = any(p.PieceToId(piece) != UNK_ID for piece in ("<extra_id_0>", "▁<extra_id_0>"))
        self.size = self._pieces + (0 if held else sentinels)
        self.fingerprint = _sha256(b"sentencepiece", str(self.size).encode(), model)

    def encode_part(self, text: str) -> list[int]:
        """See `Vocabulary.encode_part`."""
        ids: list[int] = self._processor.EncodeAsIds(text)
        return ids

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


def vocabulary_name(name: str) -> str:
    """`name`, or what the environment says where it is empty.

    Raises:
        InputError: neither says anything.
    """
    name = name or os.environ.get(ENVIRONMENT, "")
    if not name:
        raise InputError(
            f"no vocabulary: VOCABULARY is empty and {ENVIRONMENT} is not set; set one to "
            f"{_CHOICES}"
        )
    return name


def load_vocabulary(name: str = "", setting: str = "VOCABULARY") -> Vocabulary:
    """The vocabulary of a name; loaded once a process.

    Args:
        name: ``demo``, ``bytes``, the path of a SentencePiece model (T5's, or one trained with
            T5's fixed ids; 100 sentinels are appended as T5 has them) or of a folder with a
            ``spiece.model``, ``hf:OWNER/NAME`` (its ``spiece.model``, from the local cache or the
            hub), or "" for the environment variable STEPDISTILL_VOCABULARY.
        setting: the macro or flag that `name` stands in, for messages.

    Raises:
        InputError: nothing named, the file is missing or is no such model, or the hub or the
            store that it lies on cannot be used.
    """
    return _load(vocabulary_name(name), setting if name else ENVIRONMENT)


def vocabulary_at_hand(name: str = "") -> Vocabulary | None:
    """As `load_vocabulary`, but None where there is none without asking the network."""
    try:
        setting = "VOCABULARY" if name else ENVIRONMENT
        name = vocabulary_name(name)
        repository = name.removeprefix(hub.PREFIX)
        is_remote = name != repository and not epath.Path(repository).expanduser().is_dir()
        if is_remote and hub.cached(repository, (SENTENCEPIECE_FILE,)) is None:
            return None
        return _load(name, setting)
    except ValueError:
        # InputError is one too: nothing is named, or nothing lies where the name says.
        return None


@functools.lru_cache(maxsize=8)
def _load(name: str, setting: str) -> Vocabulary:
    if name == "bytes":
        return ByteVocabulary()
    if name == "demo":
        demo_words = SentencePieceVocabulary(_demo_model(), 0, where="the demo's vocabulary")
        # The model's bytes differ from one release of SentencePiece to the next, its pieces do not.
        demo_words.fingerprint = _sha256(b"demo", *map(str.encode, demo_words.pieces()))
        return demo_words
    storage.check(setting, name)
    path = epath.Path(name.removeprefix(hub.PREFIX)).expanduser()
    if path.is_dir():
        path = path / SENTENCEPIECE_FILE
    elif name.startswith(hub.PREFIX):
        path = hub.find(
            f"{setting} {name!r}",
            name.removeprefix(hub.PREFIX),
            (SENTENCEPIECE_FILE,),
            f"set {setting} to its path",
        )
    if not path.is_file():
        raise InputError(f"{setting} {name!r}: no such file; set {setting} to {_CHOICES}")
    return SentencePieceVocabulary(path.read_bytes(), T5_SENTINELS, where=f"{setting} {path}")


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
