"""The order of the most likely classes."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from clca.models.ranking import most_likely
from clca.serve.service import Ranked


@given(st.lists(st.lists(st.integers(-2, 2), min_size=1, max_size=7), min_size=1, max_size=4), st.integers(1, 9))
def test_of_equal_scores_the_lower_class_comes_first(rows: list[list[int]], k: int) -> None:
    width = min(len(row) for row in rows)
    rows = [row[:width] for row in rows]
    best, index = most_likely(torch.tensor(rows, dtype=torch.float32), k)
    expected = [sorted(range(width), key=lambda i: (-row[i], i))[:k] for row in rows]
    assert index.tolist() == expected
    assert best.tolist() == [[row[i] for i in of] for row, of in zip(rows, expected, strict=True)]


def test_an_endpoint_answers_equal_classes_in_that_order() -> None:
    class Served:
        classes = tuple(f"class {i:02}" for i in range(80))

    probabilities = torch.full((80,), 1 / 128)
    probabilities[[70, 20]] = 0.2
    answer = torch.cat([probabilities, torch.tensor([torch.nan])])  # the last: unfamiliarity, which is not known
    found = Ranked.of(Served(), answer, 4)  # type: ignore[arg-type]
    assert found.classes == ("class 20", "class 70", "class 00", "class 01")
    assert len(Ranked.of(Served(), answer, 100).classes) == 80  # type: ignore[arg-type]
