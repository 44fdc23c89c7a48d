"""What loading an engine changes in this process, remembered so that it can be put back.

vLLM's CPU build replaces ``torch.set_num_threads``, seeds the global random generators, and sets a dozen
environment variables (``LD_PRELOAD`` among them). Later stages run in the same process and must find it as
it was.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

__all__ = ["ProcessState", "quiet_stderr"]


class ProcessState:
    """Taken before an engine is imported; `restore` undoes what was changed since, once."""

    def __init__(self) -> None:
        self._environment = dict(os.environ)
        self._changed: dict[str, str] | None = None
        self._torch: dict[str, Any] | None = None
        self._random = random.getstate()
        self._restored = False

    def set_default(self, variables: Mapping[str, str]) -> None:
        """Set environment variables that the user has not set."""
        for name, value in variables.items():
            os.environ.setdefault(name, value)

    def set_threads(self, count: int) -> None:
        """Run torch's (and so the engine's) parallel regions on ``count`` threads.

        OMP_NUM_THREADS is read when OpenMP loads, which ``import torch`` has long done by now; this call is
        what works afterwards.
        """
        import torch

        self.note_torch()
        # Not torch.set_num_threads: where another engine is loaded, vLLM has put a refusal in its place.
        torch._C.set_num_threads(count)

    def note_torch(self) -> None:
        """Remember torch's thread count and random state; the first call counts."""
        import numpy as np
        import torch

        if self._torch is None:
            self._torch = {
                "set_num_threads": torch.set_num_threads,
                "threads": torch.get_num_threads(),
                "random": torch.get_rng_state(),
                "numpy": np.random.get_state(),
            }

    def note_changes(self) -> None:
        """Note which variables the engine has set, so that `restore` leaves alone what others set later."""
        now = dict(os.environ)
        names = {*now, *self._environment}
        self._changed = {n: now.get(n, "") for n in names if now.get(n) != self._environment.get(n)}

    def restore(self) -> None:
        """Put the environment, threads and random states back. Safe to call twice."""
        if self._restored:
            return
        self._restored = True
        if self._changed is None:
            self.note_changes()
        for name, value in (self._changed or {}).items():
            if os.environ.get(name, "") == value:
                before = self._environment.get(name)
                if before is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = before
        random.setstate(self._random)
        if self._torch is not None:
            self._restore_torch(self._torch)

    @staticmethod
    def _restore_torch(saved: Mapping[str, Any]) -> None:
        import numpy as np
        import torch

        torch.set_num_threads = saved["set_num_threads"]
        torch._C.set_num_threads(saved["threads"])
        torch.set_rng_state(saved["random"])
        np.random.set_state(saved["numpy"])


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Hold back what is written to standard error, by native code too; show it if the block fails.

    vLLM's CPU build prints notes from C++ (NUMA binding) and warnings at import that no logging setting reaches.
    """
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            held.seek(0)
            os.write(kept, held.read())
            raise
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
