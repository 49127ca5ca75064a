"""Load programs that are compiled once onto every local device.

An XLA executable belongs to the device it was compiled for. Compiling thousands of programs again
for each of eight devices would take eight times as long, whereas a copy loads in milliseconds.

A program that XLA read from a cache on disk cannot always be copied (on CPUs, some of its functions
are missing then). With such a cache, JAX therefore compiles for each device and finds the results
in it: on GPUs one entry serves all devices, while each simulated CPU device has its own.
"""

import dataclasses
import functools
import io
import logging
from collections.abc import Callable, Hashable, Iterable
from concurrent.futures import Future
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import serialize_executable

from ghn_jax.programs.cache import ProgramCache, VjpPrograms


def relocate(program: Any, device: jax.Device) -> Any:
    """Load a compiled program onto another device of the same backend.

    Args:
        program: A `jax.stages.Compiled` for one device, or `VjpPrograms`.
        device: The device that the copy runs on.

    Returns:
        The copy. For `VjpPrograms` only the forward program is copied, since backward ones are
        lowered from the original.
    """
    if isinstance(program, VjpPrograms):
        return dataclasses.replace(program, forward=relocate(program.forward, device))
    return _load_on(program, device)


def _load_on(program: jax.stages.Compiled, device: jax.Device) -> jax.stages.Compiled:
    """Load a copy onto a device; all uses of JAX's private names are in here, see `can_relocate`.

    JAX's own loader keeps the device that the program was compiled for; this one replaces it.
    """
    from jax._src import compiler  # compile options have no public constructor

    class AnyDevice(dict):
        """Maps every device id to the device that the program is loaded onto."""

        def __missing__(self, key: int) -> jax.Device:
            return device

    class Loader(serialize_executable._JaxPjrtUnpickler):
        def persistent_load(self, reference: Any) -> Any:
            if reference[0] != "exec":
                return super().persistent_load(reference)
            options = compiler.get_compile_options(
                num_replicas=1, num_partitions=1, device_assignment=np.array([[device.id]])
            )
            return self.backend.deserialize_executable(
                reference[1], executable_devices=self.execution_devices, compile_options=options
            )

    data, in_tree, out_tree = serialize_executable.serialize(program)
    loader = Loader(io.BytesIO(data), device.client, [device])
    loader.devices_by_id = AnyDevice()
    unloaded, arguments, no_kwargs = loader.load()
    return jax.stages.Compiled(
        unloaded.load(), [], in_tree.unflatten(arguments), out_tree, no_kwargs=no_kwargs
    )


@functools.cache
def can_relocate() -> bool:
    """Return whether `relocate` works with this JAX release's internals, which is tried once."""
    device = jax.local_devices()[-1]
    try:
        program = jax.jit(lambda x: x + 1).lower(jnp.zeros(())).compile()
        copy = relocate(program, device)
        return bool(copy(jax.device_put(jnp.ones(()), device)) == 2)
    except Exception as error:  # whatever changed inside JAX, compiling again is always correct
        logging.getLogger(__name__).warning(
            "programs are compiled for each device, which takes longer: JAX %s does not load copies"
            " as this code expects (%s: %s)",
            jax.__version__,
            type(error).__name__,
            error,
        )
        return False


class ProgramsOnDevice:
    """A view of a `ProgramCache` that loads its programs onto one device on first use.

    Args:
        cache: The cache, which compiles for the default device.
        device: The device that `get` loads programs onto.
    """

    def __init__(self, cache: ProgramCache, device: jax.Device) -> None:
        self._cache = cache
        self._device = device
        self._loaded: dict[Hashable, Any] = {}

    @property
    def num_compilations(self) -> int:
        """Number of programs compiled so far, for all devices together."""
        return self._cache.num_compilations

    def __contains__(self, key: Hashable) -> bool:
        return key in self._cache

    def get(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return the program for `key`, loaded onto the device."""
        program = self._loaded.get(key)
        if program is None:
            program = self._loaded[key] = self._load(key, build)
        return program

    def _load(self, key: Hashable, build: Callable[[], Any]) -> Any:
        if _makes_copies():
            return relocate(self._cache.get(key, build), self._device)
        with jax.default_device(self._device):
            return self._cache.build_again(build)

    def build_here(self, key: Hashable, build: Callable[[], Any]) -> Any:
        """Return a program from which to lower another one: the original if copies are possible."""
        return self._cache.build_here(key, build) if _makes_copies() else self.get(key, build)

    def submit(self, key: Hashable, build: Callable[[], Any]) -> Future:
        """Start building a program, see `ProgramCache.submit`."""
        return self._cache.submit(key, build)

    def wait(self, keys: Iterable[Hashable]) -> None:
        """Wait for programs, see `ProgramCache.wait`."""
        self._cache.wait(keys)


def _makes_copies() -> bool:
    has_disk = jax.config.jax_compilation_cache_dir is not None  # type: ignore[attr-defined]
    return not has_disk and can_relocate()


def programs_on(cache: ProgramCache, device: jax.Device) -> ProgramCache | ProgramsOnDevice:
    """Return the cache if it compiles for the device, else a view of it for that device."""
    return cache if device == jax.local_devices()[0] else ProgramsOnDevice(cache, device)
