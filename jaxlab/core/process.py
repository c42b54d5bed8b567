"""Start of a process: compilation cache, memory, joining hosts, signals to stop."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax

from jaxlab.core import (
    accelerators,
    errors,
    host_memory,
    last_words,
    paths,
)

_LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


def start() -> None:
    """Prepares the process; the command line calls it, a library user may.

    Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, by default in the user's
    cache folder; JAXLAB_COMPILATION_CACHE=0 turns that off. JAXLAB_KEEP_MEMORY=0 leaves
    malloc as it is (`core/host_memory.py`).

    A laptop or a Colab must never wait for a coordinator that does not exist, so other
    hosts are joined only with JAXLAB_MULTIHOST=1. Arguments come from the environment
    of TPU VMs, Slurm or Open MPI; elsewhere from JAXLAB_COORDINATOR,
    JAXLAB_NUM_PROCESSES and JAXLAB_PROCESS_ID. A coordinator that does not come is an
    error after JAXLAB_JOIN_SECONDS (300); when a host dies, the others end within
    JAXLAB_HEARTBEAT_SECONDS (100), each with a line on stderr (`core/last_words.py`).

    Raises:
        UserError: the other hosts could not be joined, or there is no device of the
            kind that JAX_PLATFORMS names.
    """
    host_memory.keep_freed_memory()
    if os.environ.get("JAXLAB_COMPILATION_CACHE") == "0":
        jax.config.update("jax_enable_compilation_cache", False)
    elif not jax.config.jax_compilation_cache_dir:
        folder = paths.cache("compiled")
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # A command runs dozens of programs that compile in less than jax's own 1 s.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    if os.environ.get("JAXLAB_MULTIHOST") == "1":
        _join_hosts()
    accelerators.check()


def _join_hosts() -> None:
    if jax.distributed.is_initialized():
        return
    coordinator = os.environ.get("JAXLAB_COORDINATOR")
    seconds = _number("JAXLAB_JOIN_SECONDS", 300)
    options = {
        "initialization_timeout": seconds,
        "heartbeat_timeout_seconds": _number("JAXLAB_HEARTBEAT_SECONDS", 100),
    }
    if coordinator is not None:
        options |= {
            "coordinator_address": coordinator,
            "num_processes": _number("JAXLAB_NUM_PROCESSES"),
            "process_id": _number("JAXLAB_PROCESS_ID"),
        }
        if coordinator.rsplit(":", 1)[0] in _LOOPBACK:  # else it listens everywhere
            options["coordinator_bind_address"] = coordinator
        if options["process_id"] != 0:
            _wait_for(coordinator, seconds)
    last_words.watch()
    try:
        jax.distributed.initialize(**options)
    except (RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0][:200]
        raise errors.UserError(
            f"could not join the other hosts ({reason}); start the same command on "
            "every host, or unset JAXLAB_MULTIHOST"
        ) from error


def _wait_for(coordinator: str, seconds: int) -> None:
    """Until somebody listens there: jax itself would abort the process in the end."""
    host, _, port = coordinator.rpartition(":")
    if not (port.isascii() and port.isdigit()):
        raise errors.UserError(f"JAXLAB_COORDINATOR is {coordinator!r}; use HOST:PORT")
    end = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=1).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise errors.UserError(
                    f"nothing answers at {coordinator} within {seconds} s ({error}); "
                    "start the same command on every host, process 0 first, or unset "
                    "JAXLAB_MULTIHOST"
                ) from None
            time.sleep(0.2)


def _number(name: str, default: int | None = None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdigit()):
        raise errors.UserError(f"{name} is {text!r}; set it to a whole number")
    return int(text)


@contextlib.contextmanager
def leader_first(what: str) -> Iterator[None]:
    """Process 0 runs the body, then the others: it writes files that all read.

    Args:
        what: a name for it; the same on all hosts.
    """
    if jax.process_count() == 1:
        yield
        return
    from jax.experimental import multihost_utils

    is_leader = jax.process_index() == 0
    if not is_leader:
        multihost_utils.sync_global_devices(what)
    yield
    if is_leader:
        multihost_utils.sync_global_devices(what)


class Stop:
    """Whether to save and stop, asked after each step with the number of steps done.

    Attributes:
        signal: that came; None while none has.
    """

    def __init__(self, reached: Callable[[int], bool] | None = None):
        self.signal: int | None = None
        self._reached = reached

    def __call__(self, step: int) -> bool:
        """Whether a signal came; of several hosts, whether this is the step to stop."""
        if self._reached is not None and self._reached(step):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def receive(self, number: int, frame: object = None) -> None:
        """The handler of a signal."""
        self.signal = number


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """A `Stop` that SIGTERM and SIGINT are told to.

    Of several hosts one is told; all stop at the same step, on SIGTERM only.
    """
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        # jax.distributed listens to the signal, and agrees on a step with the others.
        yield Stop(multihost_utils.reached_preemption_sync_point)
        return
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    handlers = {
        number: signal.signal(number, stop.receive)
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield stop
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
