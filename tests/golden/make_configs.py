"""Writes the resolved configuration of every shipped run file to tests/golden/configs.

Run it after a change of the gin files that is meant, and read the difference before committing:

    python tests/golden/make_configs.py
"""

import pathlib

from stepdistill_jax.run import load

FOLDER = pathlib.Path(__file__).parent / "configs"


def run_files() -> list[pathlib.Path]:
    """The shipped run files: those at the top of the gin folder."""
    return sorted(load.gin_folder().glob("*.gin"))


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.glob("*.gin"):
        old.unlink()
    for path in run_files():
        (FOLDER / path.name).write_text(load.dump(load.parse([path])))


if __name__ == "__main__":
    main()
