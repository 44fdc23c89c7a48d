"""vLLM's own figures, taken where they cost next to nothing.

vLLM's statistics come in two parts: the scheduler's, once a step, and the front-end's, which times every token of every
row and fills some forty Prometheus histograms. We leave the first on and the second off, and stand in the place of
vLLM's loggers.
"""

from __future__ import annotations

from typing import Any

__all__ = ["SchedulerWatch", "watch_scheduler"]


class SchedulerWatch:
    """A vLLM stat logger (the methods of its ``AggregateStatLoggerBase``) that keeps the newest figures and sums."""

    def __init__(self) -> None:
        self._newest: dict[int, Any] = {}  # by engine, of several data-parallel ones
        self._asked = self._found = self._preempted = 0

    def record(
        self, scheduler_stats: Any, iteration_stats: Any = None, mm_cache_stats: Any = None, engine_idx: int = 0
    ) -> None:
        """Called by vLLM after every step."""
        del iteration_stats, mm_cache_stats
        if scheduler_stats is None:
            return
        self._newest[engine_idx] = scheduler_stats
        cache = scheduler_stats.prefix_cache_stats
        self._asked += cache.queries
        self._found += cache.hits
        # A row counts here each time it is taken up again.
        self._preempted += cache.preempted_requests

    def figures(self) -> dict[str, float]:
        """The names that `generate.throughput` knows; empty before the first step."""
        newest = list(self._newest.values())
        if not newest:
            return {"prefix_tokens_total": 0.0, "prefix_hit_tokens_total": 0.0, "preemptions_total": 0.0}
        return {
            "running": float(sum(stats.num_running_reqs for stats in newest)),
            "waiting": float(sum(stats.num_waiting_reqs + stats.num_skipped_waiting_reqs for stats in newest)),
            "kv_cache_usage": sum(float(stats.kv_cache_usage) for stats in newest) / len(newest),
            "prefix_tokens_total": float(self._asked),
            "prefix_hit_tokens_total": float(self._found),
            "preemptions_total": float(self._preempted),
        }

    def log(self) -> None:
        """Nothing: vLLM calls it every ten seconds to print."""

    def log_engine_initialized(self) -> None:
        """Nothing."""

    def record_sleep_state(self, is_awake: int = 0, level: int = 0) -> None:
        """Nothing."""

    def record_admission_rejection(self, reason: str) -> None:
        """Nothing."""


def watch_scheduler(engine: Any) -> SchedulerWatch | None:
    """Watch an engine (``LLM.llm_engine``) that was made with ``disable_log_stats=False``; None where it was not."""
    manager = getattr(engine, "logger_manager", None)
    if manager is None:
        return None
    from vllm.v1.metrics.prometheus import unregister_vllm_metrics

    watch = SchedulerWatch()
    manager.stat_loggers = [watch]
    unregister_vllm_metrics()  # vLLM's own, in prometheus_client's global registry
    engine.log_stats = engine.output_processor.log_stats = False
    return watch
