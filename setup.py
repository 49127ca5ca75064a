"""What pyproject.toml cannot say: the configs of `launch/` are installed as `ghn_jax.configs`."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ghn_jax", "ghn_jax.*"]), "ghn_jax.configs"],
    package_dir={"ghn_jax.configs": "launch/configs"},
)
