"""Prices that come with the package, and those that are kept."""

import random
import subprocess
import sys

import pytest

from clca.errors import ClcaError
from clca.models.config import ModelConfig
from clca.study.plan.config import read_study, shipped
from clca.study.plan.cost_table import Prices, shipped_prices
from clca.study.plan.expand import plan
from clca.study.plan.identity import model_text


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_model_of_a_shipped_study_has_its_price(name):
    planned = plan(read_study(name), "data")
    texts = {model_text(planned.config(run).model) for run in [*planned.pretraining, *planned.runs]}
    assert texts <= shipped_prices().keys(), "write them anew: clca.study.plan.cost_table.write_shipped_prices"


def test_shipped_prices_are_what_the_models_cost():
    from clca.study.plan.cost_model import price, training_gmacs

    planned = plan(read_study("paper"), "data")
    for run in random.Random(0).sample(planned.runs, 40):
        config = planned.config(run).model
        found = Prices().of(config, 80)
        assert found == pytest.approx((training_gmacs(config, 80), price(config, 80)), rel=1e-9)


def test_a_price_is_worked_out_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    config = ModelConfig(backbone="vit_tiny_patch16_224", img_size=48, reduction="evit", keep_rate=0.37)
    prices = Prices()
    first = prices.of(config, 7)
    prices.save()
    monkeypatch.setattr("clca.study.plan.cost_table.worked_out", lambda config: pytest.fail("it was kept"))
    assert Prices().of(config, 7) == first
    (tmp_path / "prices.json").write_text("damaged")
    assert not Prices().kept


def test_a_model_that_does_not_exist_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path))
    with pytest.raises(ClcaError, match="unknown model"):
        Prices().of(ModelConfig(backbone="vit_tyni_patch16_224"), 7)


def test_planning_the_papers_grid_with_its_cost_needs_no_torch(tmp_path):
    program = (
        "import sys, clca.cli.main\n"
        "code = clca.cli.main.main(['study', 'plan', 'paper', '--data-folder', 'nowhere'])\n"
        "print(code, [name for name in ('torch', 'timm', 'pandas', 'ray') if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "0 []"
    assert "12,960 runs" in done.stdout
    assert "EMACs in all" in done.stdout
    assert "device time left" in done.stdout
