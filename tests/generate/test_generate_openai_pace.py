"""What sets the openai backend's pace, without a network: token buckets, and one server's health."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from obverse.engine.errors import RecipeError
from obverse.engine.generate.openai_options import Options
from obverse.engine.generate.rate_limit import Bucket, RateLimit
from obverse.engine.generate.server_health import ServerHealth


@given(
    per_minute=st.floats(1, 1e6),
    steps=st.lists(st.tuples(st.floats(0, 5), st.floats(0.01, 3000)), min_size=1, max_size=60),
)
def test_no_span_takes_more_than_the_rate_allows(per_minute: float, steps: list[tuple[float, float]]) -> None:
    now = 1000.0
    bucket = Bucket(per_minute, now)
    taken: list[tuple[float, float]] = []
    for pause, units in steps:
        now += pause
        while (wait := bucket.wait(units, now)) > 0:
            now += wait
        bucket.take(units)
        taken.append((now, units))
    for i in range(len(taken)):
        total = 0.0
        for at, units in taken[i:]:
            # All but the last, which may be larger than what the bucket holds.
            assert total <= bucket.capacity + bucket.rate * (at - taken[i][0]) + 1e-6 * max(1.0, total)
            total += units


def test_waits_are_no_longer_than_needed() -> None:
    bucket = Bucket(600, 0.0)  # ten a second
    for n in range(50):
        assert bucket.wait(1, n / 10) == pytest.approx(0, abs=1e-9)
        bucket.take(1)
        assert bucket.wait(1, n / 10) == pytest.approx(0.1)


def test_a_limit_of_both_waits_for_the_slower_and_settles_tokens() -> None:
    limit = RateLimit(60, 60_000, 0.0)
    assert limit.wait(100, 1.0) == 0
    limit.take(100)
    assert limit.wait(100, 1.0) == pytest.approx(1.0)  # the next request
    limit.take(5000)
    assert limit.wait(100, 3.0) == pytest.approx(2.2)  # 1,000 - 100 - 5,000, and 2,000 since, and 100 to take
    limit.settle(5000, 10)
    assert limit.wait(100, 3.0) == 0
    assert RateLimit(0, 0, 0.0).wait(1e9, 0.0) == 0


def busy(health: ServerHealth, now: float, sent_at: float) -> None:
    health.failed(now, sent_at, "HTTP 429", probe=False, busy=True)


def test_busy_answers_cut_the_limit_once_a_round() -> None:
    health = ServerHealth(100, 1.0)
    health.active = 100
    for _ in range(5):  # all sent before the first of them came back
        health.active -= 1
        busy(health, 2.0, 1.0)
    assert health.limit == 70
    health.active = 70
    busy(health, 4.0, 3.0)
    assert health.limit == 49


def test_the_limit_comes_back_only_where_it_is_felt() -> None:
    health = ServerHealth(100, 1.0)
    health.active = 99
    busy(health, 2.0, 1.0)
    cut = health.limit
    health.active = 5
    for _ in range(1000):
        health.answered(3.0)
    assert health.limit == cut
    for _ in range(100 * 100):
        health.active = health.limit - 1
        health.answered(4.0)
    assert health.limit == 100


def test_a_server_is_down_after_failures_in_a_row_and_is_probed_at_growing_intervals() -> None:
    health = ServerHealth(64, 0.5)
    now = 10.0
    for _ in range(2):
        health.failed(now, now, "no", probe=False)
    assert not health.down
    assert health.blame(now) is None
    health.failed(now, now, "no", probe=False)
    assert health.down
    pauses = []
    for _ in range(9):
        at = health.next_probe()
        assert at is not None
        pauses.append(at - now)
        assert not health.room(at - 1e-6) or at == now
        assert health.room(at)
        now = at
        health.probing = True
        assert health.next_probe() is None
        assert not health.room(now + 1000)  # one at a time
        health.probing = False
        health.failed(now, now, "no", probe=True)
    assert pauses == [0, 0.5, 1, 2, 4, 8, 10, 10, 10]
    health.answered(now + 1)
    assert not health.down
    assert health.limit == 2  # slow start
    assert health.blame(10.0) == 0.25  # an outage is nobody's fault, nearly
    for _ in range(63):
        health.active = health.limit - 1
        health.answered(now + 2)
    assert health.limit >= 33


def test_failures_of_a_server_that_answers_at_once_are_the_rows_own() -> None:
    health = ServerHealth(64, 0.5)
    for _ in range(3):
        health.failed(10.0, 9.0, "no", probe=False)
    assert health.down
    health.answered(10.1)  # the first probe
    assert health.blame(10.0) == 1.0
    assert health.limit == 64


def test_bad_luck_among_many_is_no_outage() -> None:
    health = ServerHealth(1000, 0.5)
    health.active = 800
    for _ in range(100):
        health.failed(10.0, 9.0, "no", probe=False)
    assert not health.down


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        ({"timeout": 0}, "engine.timeout: expected a number of at least 0.001, saw 0"),
        ({"timeout": "5"}, "engine.timeout: expected a number"),
        ({"outage_budget": float("nan")}, "engine.outage_budget"),
        ({"first_pause": True}, "engine.first_pause"),
        ({"max_attempts": 0}, "engine.max_attempts: expected a number of at least 1, saw 0"),
        ({"max_attempts": 2.5}, "engine.max_attempts: expected a whole number"),
        ({"requests_per_minute": -1}, "engine.requests_per_minute"),
        ({"replicas": "http://a:pw123456@b/v1"}, "engine.replicas: expected a list"),
        ({"extra_body": 3}, "engine.extra_body: expected a table"),
        ({"extra_body": {"stream": True}}, "engine.extra_body: 'stream' is set by Obverse"),
        ({"extra_body": {"a": object}}, "engine.extra_body: expected values that JSON has"),
    ],
)
def test_options_out_of_range_are_named(engine: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Options.read(engine)
    assert message in str(caught.value)
    assert "pw123456" not in str(caught.value)
