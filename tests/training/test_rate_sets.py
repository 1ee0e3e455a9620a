"""The keep rates of a step: which there are, and what they cost together."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clca.training.rate_sets import mean_cost, rate_sets


@given(st.dictionaries(st.floats(0.01, 1.0), st.floats(0.01, 1.0), min_size=2, max_size=8))
def test_every_set_has_the_largest_rate_costs_at_most_twice_it_and_every_rate_has_a_set(
    shares: dict[float, float],
) -> None:
    costs = dict(zip(sorted(shares), sorted(shares.values()), strict=True))  # more tokens cost no less
    sets = rate_sets(costs)
    assert {rate for rates in sets for rate in rates} == set(costs)
    for rates in sets:
        assert rates[0] == max(costs)
        assert len(set(rates)) == len(rates) >= 2
        assert sum(costs[rate] for rate in rates) <= 2 * costs[max(costs)] * (1 + 1e-9)
    assert costs[max(costs)] < mean_cost(costs) <= 2 * costs[max(costs)] * (1 + 1e-9)


@pytest.mark.parametrize(
    ("costs", "sets"),
    [
        ({0.1: 3.0, 1.0: 10.0}, ((1.0, 0.1),)),
        ({0.1: 3.0, 0.3: 4.0, 0.5: 5.0, 1.0: 10.0}, ((1.0, 0.1, 0.3), (1.0, 0.1, 0.5))),
        ({0.1: 3.0, 0.3: 4.0, 0.9: 9.0, 1.0: 10.0}, ((1.0, 0.1, 0.3), (1.0, 0.9))),
        ({0.1: 1.0, 0.5: 1.0, 1.0: 1.0}, ((1.0, 0.5), (1.0, 0.1))),
    ],
)
def test_the_smallest_and_one_in_between_join_where_they_fit(
    costs: dict[float, float], sets: tuple[tuple[float, ...], ...]
) -> None:
    assert rate_sets(costs) == sets
