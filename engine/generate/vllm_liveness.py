"""Noticing that vLLM's engine process is gone.

An engine that fails by an exception says so to its client. One that was killed (by the system, when memory runs out)
can't, and vLLM 0.32's synchronous client then waits for its next output for ever: it marks the engine dead, and wakes
nobody.
"""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

__all__ = ["watch_process"]

EVERY_S = 1.0


def watch_process(engine: Any) -> None:
    """Make ``engine.step()`` (``LLM.llm_engine``) raise once the process of its core is gone.

    Does nothing where the core runs in this process. The thread ends with the engine.
    """
    client = engine.engine_core
    if getattr(client, "outputs_queue", None) is None or not hasattr(getattr(client, "resources", None), "engine_dead"):
        return
    threading.Thread(target=_watch, args=(weakref.ref(client),), name="obverse-vllm-liveness", daemon=True).start()


def _watch(client_ref: weakref.ref[Any]) -> None:
    while (client := client_ref()) is not None:
        if client.resources.engine_dead:
            client.outputs_queue.put(RuntimeError("the engine's process is gone: killed, perhaps for its memory"))
            return
        del client  # not to be kept alive by its watcher
        time.sleep(EVERY_S)
