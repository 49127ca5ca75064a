"""Every test runs with strict dtypes and ranks, on two simulated CPU devices."""

import os

# What tests compile runs once or twice: half of LLVM's work would be for nothing.
_FLAGS = "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
os.environ.setdefault("XLA_FLAGS", _FLAGS)
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def counts_programs(monkeypatch):
    """Count the programs that are asked for, without compiling them."""
    from ghn_jax.programs.cache import ProgramCache

    def submit(self, key, build):
        if key not in self._futures:
            self.num_compilations += 1
        return self._futures.setdefault(key, None)

    monkeypatch.setattr(ProgramCache, "wait", lambda self, keys: None)
    monkeypatch.setattr(ProgramCache, "submit", submit)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Environment of processes that find there what another one of the module has compiled."""
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


@pytest.fixture
def x64():
    """Run a test with 64-bit types."""
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", False)
