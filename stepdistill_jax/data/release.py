"""The paper's released data: its files and digests, and how to download them.

What is verified, and by what:

- The archive ``datasets.zip`` of google-research/distilling-step-by-step at a pinned commit, by its
  git blob id (SHA-1 over ``b"blob <size>\\0"`` and the bytes), which that commit's tree states.
- Every unpacked file with a digest in `FILES`, by sha256, computed from ``../shared/data``. The
  train splits of e-SNLI and ANLI and their teacher outputs are not there and have no digest. They
  rest on the archive's blob id and on the CRC-32 of each of its members.
- ``ASDiv.xml`` of chaochun/nlu-asdiv-dataset at a pinned commit, by sha256.

No other module downloads the paper's data.
"""

from __future__ import annotations

import dataclasses
import fcntl
import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import tqdm
from absl import logging
from etils import epath

from stepdistill_jax import storage
from stepdistill_jax.data.config import TokenConfig
from stepdistill_jax.data.fetch import (
    GIT_BLOB,
    SHA256,
    Download,
    digest,
    disk_errors,
    fetch,
    unpack,
)
from stepdistill_jax.spec import InputError

DOWNLOADS = (
    Download(
        url="https://github.com/google-research/distilling-step-by-step/raw/"
        "ef944263c9ddfd40a9888557f3e7d17513fd1a7e/datasets.zip",
        path="datasets.zip",
        algorithm=GIT_BLOB,
        digest="fb9d88a0b44c2daac1ec1639f0bdae993e7e5bcd",
        folders=("esnli", "anli1", "cqa", "svamp"),
    ),
    Download(
        url="https://raw.githubusercontent.com/chaochun/nlu-asdiv-dataset/"
        "8e2c7dbc00b3bae1a962be5170e37e291b00b688/dataset/ASDiv.xml",
        path="asdiv/ASDiv.xml",
        algorithm=SHA256,
        digest="ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929",
        folders=("asdiv",),
    ),
)

# Folder of DATA_DIR -> file in it -> sha256, or None where it is not known.
FILES: Mapping[str, Mapping[str, str | None]] = {
    "esnli": {
        "esnli_train.json": None,
        "esnli_test.json": "2307b4f6f6aea3940b2f1e12e792b86bad2b9fa73ef7032ffa41ce9a21976b9b",
        "esnli_valid.json": "4952f52d3dedfcafcdea691e4cde21a3db1e6dbed1f1622bb314c418cc27e6a6",
        "llm/test_CoT_0.json": "58051c39aa914699c956281bf56f9bc4b65601f4fe6685b2868226f04ef738ac",
        "llm/test_CoT_1.json": "2bf21b5ce8feb5177e9f121f237756ea045eaf0a5fa364c4a17d1de665141eed",
        "llm/valid_CoT_0.json": "3398e706895422fa17ae2ed3022890d7c5009207d5c831713b605e15af5b5c52",
        "llm/valid_CoT_1.json": "f14d62ae2a81b8b33293cd9e8fe02b28b781d8628f4b92393c862f8903e8a122",
        **{f"llm/train_CoT_{i}.json": None for i in range(100)},
    },
    "anli1": {
        "anli1_train.json": None,
        "anli1_test.json": "fe494327269367e1ac4342fd72969a6270f51fd90cef0bc47a364a1d452762e7",
        "anli1_valid.json": "743faf5a43b687e34f5482166106e4c86a9f8f013078364a62caa055f8504704",
        "llm/test_CoT_0.json": "49e312c60501f8d374f9d8f7ba7bf86601bc736e667eedb9087793f274a1a0f1",
        "llm/valid_CoT_0.json": "ac3576f6caba189a7c00d1982bb2521518e5247b5aa2b347c483c874451ab935",
        **{f"llm/train_CoT_{i}.json": None for i in range(4)},
    },
    "cqa": {
        "cqa_test.json": "caf4f47b8afac62a80f0517e1af3eba2af11de0c7c6f3baf3742fb6390d99dfb",
        "cqa_train.json": "09601f7b3239eb4c0a3be16c4b897d0c30905e9bc38cf36c77831d98bd37d9fb",
        "llm/test_CoT_0.json": "02860e4fa44b4c1f08ed29513abf74f433345e534c51418448b40869ed752a01",
        "llm/test_CoT_1.json": "44f1fc36088d5beed937c204ae43ca09d74fd0ea6a784fa89207b7e88c37fb15",
        "llm/train_CoT_0.json": "632167edcb645336a0ff1194fe87a1821fefdb02515679d178b167619903fff1",
        "llm/train_CoT_1.json": "8d14f619696c2bf3f0989d3a47ee8120f047af4eddaf23eb64610941cb453796",
        "llm/train_CoT_2.json": "25e559368c7e69dba359245395463a669f2fcef91a3b7b89613ff41bed0fbd8f",
        "llm/train_CoT_3.json": "db2a50477c463dd84a4b7ee2dedae323ff8746f20ca0c4a4619c03e04140ddf5",
        "llm/train_CoT_4.json": "52ccbf961db874a47968599f8411372a39f280f91413df7d90bcbcea291b9836",
        "llm/train_CoT_5.json": "0d238b1c5c4be3630bf14c15a176985b4a2e7bcf5fa5a93d24e9d89ccde06974",
        "llm/train_CoT_6.json": "af81b051cefa61be0b513f9e002b9eeab7160c18731732b59138fede91fccee4",
        "llm/train_CoT_7.json": "0cd6eba4d2449fb295d66e3dd9998ab59f6246820ca07e0fd1cc61dfcc3e6b3d",
        "llm/train_CoT_8.json": "02c156f92540f7b2469d252c814a2a87dad47616f828db3e7e236edd72f21b61",
        "llm/train_CoT_9.json": "7448c4cd5a9416ccb1e0c021e2b3bf2e697dc70173ff6f08d5b64b56d5fe8038",
    },
    "svamp": {
        "SVAMP.json": "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e",
        "svamp_test.json": "b73cba2c53b1e9b1c8aa512a8928c12d0524d1acba560f8c526756185044054c",
        "svamp_train.json": "641fc0f69864e1376fc2e29675affd15fa641f3b40279dcd6a595f3780f4e721",
        "llm/test_CoT_0.json": "fd536719c09b0cc97bfeee5775b212f8e4541ffe012bcd99c893a99e7e46df37",
        "llm/train_CoT_0.json": "9aa813b5653131e53bfe0477fa2cb3f90fb3d1b7a5226433218cb7b85998f094",
        "llm/train_CoT_1.json": "db0131252436d0487ff8642d94abad23636c080258da60097d5c6f15b1e32639",
    },
    "asdiv": {
        "ASDiv.xml": "ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929",
    },
}

RIGHT, DIFFERS, MISSING, UNVERIFIED = "right", "differs", "missing", "unverified"


@dataclasses.dataclass(frozen=True)
class FileCheck:
    """One file of the release, compared with `FILES`.

    Attributes:
        path: under DATA_DIR.
        state: `RIGHT`, `DIFFERS`, `MISSING`, or `UNVERIFIED`: it exists, but has no known digest.
        expected, actual: sha256; None if not known.
    """

    path: str
    state: str
    expected: str | None
    actual: str | None


def check(data_dir: epath.PathLike, folders: Iterable[str]) -> list[FileCheck]:
    """Compares the files of the release in `folders` with `FILES`, in the table's order."""
    data_dir = epath.Path(data_dir)
    checks = []
    for folder in folders:
        for name, expected in FILES[folder].items():
            path, actual = data_dir / folder / name, None
            if not path.exists():
                state = MISSING
            elif expected is None:
                state = UNVERIFIED
            else:
                actual = digest(path, SHA256)
                state = RIGHT if actual == expected else DIFFERS
            checks.append(FileCheck(f"{folder}/{name}", state, expected, actual))
    return checks


def default_folder() -> pathlib.Path:
    """The folder of the release where DATA_DIR is not set: ``release`` in the local cache."""
    return TokenConfig().local_root() / "release"


def cached(folders: Sequence[str]) -> pathlib.Path:
    """`default_folder`; downloads what it lacks of `folders` first.

    One process of a machine downloads; the others wait for it.

    Raises:
        InputError: see `download`.
    """
    root = default_folder()
    # Written last: the archive need not hold every file of `FILES` that has no known digest.
    complete = [root / folder / ".complete" for folder in folders]
    if all(path.exists() for path in complete):
        return root
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        lock = (root / ".lock").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
    with lock:
        if not all(path.exists() for path in complete):
            logging.info("DATA_DIR is not set: downloading the paper's data to %s", root)
            download(root, folders)
            for path in complete:
                path.touch()
    return root


def download(data_dir: epath.PathLike, folders: Sequence[str]) -> list[str]:
    """Downloads, verifies and unpacks what `folders` lack; shows progress on a terminal.

    The archive stays there; it may be deleted once it is unpacked.

    Args:
        data_dir: a local folder; created if needed.
        folders: of the release, keys of `FILES`.

    Returns:
        Paths under `data_dir` that were written.

    Raises:
        InputError: no network, a wrong digest, an unsafe or damaged archive, or an existing file
            that differs from the release's (it is left alone).
    """
    if storage.is_remote(data_dir):
        raise InputError(
            f"{data_dir}: not a local folder. Download into a local one and copy it there."
        )
    root = pathlib.Path(data_dir)
    checks = check(root, folders)
    if different := [c for c in checks if c.state == DIFFERS]:
        first = different[0]
        raise InputError(
            f"{root}: {len(different)} file(s) differ from the release's: sha256 of {first.path}: "
            f"got {first.actual}, expected {first.expected}. Delete or move "
            f"{', '.join(c.path for c in different)} and run again."
        )
    lacking = {c.path.split("/")[0] for c in checks if c.state == MISSING}
    sums = {f"{folder}/{name}": s for folder in folders for name, s in FILES[folder].items()}
    written: list[str] = []
    for item in DOWNLOADS:
        if not lacking.intersection(item.folders):
            continue
        # Drawn on a terminal alone, and not for a file that is there already.
        with tqdm.tqdm(desc=item.path, unit="B", unit_scale=True, disable=None, delay=0.5) as bar:
            target = fetch(item, root, progress=functools.partial(_show, bar))
        if target.suffix == ".zip":
            written += unpack(target, root, lacking.intersection(item.folders), sums)
        else:
            written.append(item.path)
    return written


def _show(bar: tqdm.tqdm, size: int, total: int | None) -> None:
    bar.total = total
    bar.update(size - bar.n)
