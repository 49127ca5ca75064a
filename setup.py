"""Installation: `pip install -e .`; extras: test, dev, notebooks, tfds."""

from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent

# jraph is frozen since 2022; the others are bounded above by the next release that may break their
# API.
REQUIREMENTS = [
    "absl-py>=2.1,<3",
    "flax>=0.12,<0.13",
    "h5py>=3.11,<4",
    "jax>=0.10,<0.11",
    "jraph>=0.0.6.dev0,<0.1",
    "matplotlib>=3.9,<4",
    "ml_collections>=1.0,<2",
    "networkx>=3.3,<4",
    "numpy>=2.0,<3",
    "optax>=0.2.5,<0.3",
    "orbax-checkpoint>=0.12,<0.13",
    "pillow>=10,<14",
    "rich>=13.7,<16",
    "safetensors>=0.4.3,<1",
    "scikit-learn>=1.5,<2",
    "tensorboardX>=2.6,<3",
    # tensorflow-datasets reads array_record files without TensorFlow, but imports
    # importlib_resources without declaring it.
    "importlib_resources>=6.4",
    "tensorflow-datasets>=4.9.9,<5",
]

TEST = [
    # Networks of other libraries, which tests trace.
    "dm-haiku>=0.0.16,<0.1",
    "equimo>=1.1,<2",
    "equinox>=0.13,<0.14",
    "fabrique>=0.1.2,<0.2",
    "nbclient>=0.10,<1",
    "nbformat>=5.10,<6",
    "ipykernel>=6.29,<8",
    "pytest>=8.2,<10",
]

setup(
    name="ghn_jax",
    version="0.1.0",
    description="Predict the parameters of neural networks that were never trained, in JAX.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["ghn_jax", "ghn_jax.*"]),
    package_data={"ghn_jax": ["py.typed", "checkpoints/**/*"]},
    install_requires=REQUIREMENTS,
    extras_require={
        "test": TEST,
        "dev": [*TEST, "mypy>=1.11,<3", "ruff>=0.6,<1"],
    },
)
