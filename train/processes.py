"""Several processes of one run: joined, and watched, so that the others end with a line if one is lost.

JAX alone ends the others after its time-out by aborting them, with a stack of C++ and without a name.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

HEARTBEAT_TIMEOUT = 100
"""Seconds after which a process that sends no signs of life counts as lost; JAX's own default."""


@contextlib.contextmanager
def joined(heartbeat_timeout: int = HEARTBEAT_TIMEOUT, **arguments: Any) -> Iterator[None]:
    """Join the other processes for the time of the block, in which errors say which process was lost.

    Args:
      heartbeat_timeout: seconds after which a silent process counts as lost.
      arguments: of `jax.distributed.initialize`, which finds them itself on TPU slices, under Slurm and Open MPI.

    Raises:
      RuntimeError: the block failed, and a process is lost.
    """
    jax.config.update("jax_enable_recoverability", True)  # or JAX aborts the process before anything can be said
    jax.distributed.initialize(heartbeat_timeout_seconds=heartbeat_timeout, **arguments)
    over = threading.Event()
    threading.Thread(target=_watch, args=(heartbeat_timeout, over), daemon=True).start()
    try:
        yield
    except (RuntimeError, TimeoutError) as error:  # of JAX's; any other error is this process' own
        # A collective fails at once; who is to blame, the coordinator knows a little later.
        deadline = time.monotonic() + heartbeat_timeout + 10
        while jax.process_count() > 1 and time.monotonic() < deadline:
            if lost := _lost():
                over.set()
                raise RuntimeError(_message(lost)) from error
            time.sleep(1)
        raise
    with contextlib.suppress(Exception):  # none leaves while others still work, or it would count as lost
        _client().wait_at_barrier("repvit_sam_jax.end", timeout_in_ms=600_000)
    over.set()
    _leave()


def _leave() -> None:
    """Part in order: when process 0 goes, JAX aborts those that are still joined."""
    others = jax.process_count() - 1
    deadline = time.monotonic() + 30
    while jax.process_index() == 0 and len(_lost()) < others and time.monotonic() < deadline:
        time.sleep(0.1)
    jax.distributed.shutdown()


def _watch(timeout: int, over: threading.Event) -> None:
    """End the process if another one is lost while this one waits for it, as in a collective of TPUs."""
    silent_since = None
    while not over.wait(min(10, timeout / 4)):
        try:
            lost, silent_since = _lost(), None
        except Exception:  # the coordinator, which is process 0's
            silent_since = silent_since or time.monotonic()
            lost = [0] if time.monotonic() - silent_since > timeout else []
        if lost and not over.wait(timeout / 2 + 15):  # the block may say it itself, and save what it can
            print(f"error: {_message(lost)}", file=sys.stderr, flush=True)
            os._exit(1)


def _client() -> Any:
    from jax._src import distributed

    return distributed.global_state.client


def _lost() -> list[int]:
    """Numbers of the processes that are not there any more."""
    everyone = list(range(jax.process_count()))
    return sorted(set(everyone) - set(_client().get_live_nodes(everyone)))


def _message(lost: list[int]) -> str:
    names = ", ".join(map(str, lost))
    return (
        f"process {names} of {jax.process_count()} was lost; its own output says why. Start all of them again with the "
        "same command: the run goes on from its latest checkpoint"
    )
