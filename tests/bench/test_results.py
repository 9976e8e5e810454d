"""The arithmetic of `overload` and `soak`."""

from __future__ import annotations

import math

import pytest

from tests.bench.open_loop import Arrival
from tests.bench.overload_results import Level, Retry, markdown, normal_from, outcomes
from tests.bench.soak import Sample, slope


def _arrival(moment: float, ended: float, outcome: str, retry: float | None = None) -> Arrival:
    return Arrival(moment, b"", 5.0, moment + 0.001, ended, outcome, retry)


def test_goodput_counts_what_is_answered_before_the_load_ends() -> None:
    arrivals = [_arrival(1, 2, "200"), _arrival(2, 4, "200"), _arrival(9, 12, "200")]
    result = outcomes([*arrivals, _arrival(3, 8, "gave up")], 10)
    assert result["goodput"] == pytest.approx(0.2)
    assert result["offered"] == pytest.approx(0.4)
    assert result["last_seconds"] == pytest.approx(2)


def test_the_shares_of_all_outcomes_add_up() -> None:
    names = ["200", "503", "504", "gave up", "hung", "disconnected", "500", "413"]
    result = outcomes([_arrival(i, i + 1, name) for i, name in enumerate(names)], 10)
    assert sum(result["shares"].values()) == pytest.approx(1)
    assert result["shares"]["other"] == pytest.approx(0.25)
    assert result["statuses"] == dict.fromkeys(names, 1)


def test_retry_after_is_that_of_refused_requests() -> None:
    result = outcomes([_arrival(0, 1, "503", retry) for retry in (1.0, 3.0, 9.0)], 1)
    assert result["named"] == (3.0, 9.0)
    assert result["accepted"] is None


def test_a_second_named_for_less_than_a_second_is_right() -> None:
    assert Retry("line", "503", 1.0, 0.02).ratio == 1
    assert Retry("line", "503", 6.0, 3.0).ratio == 2
    assert Retry("line", "503", 6.0, None).ratio is None
    assert Retry("line", "200", None, None).ratio is None


def test_a_server_is_normal_from_the_first_of_five_requests_with_a_small_median() -> None:
    quick, slow = 0.01, 1.0
    assert normal_from([slow] * 4 + [quick] * 5, 0.02) == 2
    assert normal_from([quick] * 4, 0.02) is None
    assert normal_from([quick, quick, None, quick, quick], 0.02) is None
    assert normal_from([math.inf, *[quick] * 5], 0.02) == 1


def test_the_slope_is_that_of_the_second_half_with_one_model() -> None:
    def sample(seconds: float, megabytes: float, models: float = 1) -> Sample:
        return Sample(seconds, megabytes, 0, 0, 0, 0, models)

    first = [sample(seconds, 10 * seconds) for seconds in range(0, 600, 5)]
    second = [sample(seconds, 500 + seconds / 30) for seconds in range(600, 1201, 5)]
    second[7] = sample(635, 900, models=2)
    assert slope(first + second) == pytest.approx(2)


def test_the_tables_have_a_row_for_each_load() -> None:
    refused = [_arrival(0, 1, "503", 2.0)]
    level = Level(
        share=2,
        capacity=1,
        **outcomes(refused, 1),
        idle_seconds=0.01,
        normal_seconds=None,
        generator_cores=0.1,
        server_cores=None,
        machine_cores=2.0,
        retries=[Retry("line", "503", 2.0, 2.5)],
    )
    result = markdown([level])
    rows = [line for line in result.splitlines() if line.startswith("| 2 |")]
    assert len(rows) == 2
    assert "never" in rows[1]
    assert "line: 2, 2.5 (0.80)" in rows[1]
    assert len({line.count("|") for line in result.split("\n\n")[1].splitlines()}) == 1
