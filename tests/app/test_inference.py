"""What the page says that a photograph costs."""

from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from small_endpoint import photo, tiny_model

from clca.app.inference import PhotoInference
from clca.models.cost import cost
from clca.serve.served_model import ServedModel


def test_the_cost_of_ats_is_that_of_the_photograph(tmp_path: Path) -> None:
    served = ServedModel("ats", tiny_model("ats"), Accelerator(cpu=True))
    asked = PhotoInference.__new__(PhotoInference)
    prices = []
    for seed in (0, 1):
        (tmp_path / "a.png").write_bytes(photo(seed))
        pixels = served.transform(Image.open(tmp_path / "a.png").convert("RGB"))
        price = asked._price(served, 0.5, pixels)
        served.model.keep_rate = 0.5
        expected = cost(served.model, images=served.normalized([pixels])).gmacs
        assert price.gmacs == pytest.approx(expected)
        assert 0 < price.share <= 1.001
        prices.append(price.gmacs)
    assert served.model.keep_rate == served.keep_rate
    noise = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert prices != [pytest.approx(cost(served.model, images=noise[:1]).gmacs)] * 2
