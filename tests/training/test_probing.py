"""Recipe quick: a linear head on the features of the frozen model, in a run folder like any other."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from threadpoolctl import threadpool_info

import clca
from clca.cli import main as cli
from clca.data.cache import fill
from clca.errors import ClcaError
from clca.evaluation import evaluate
from clca.models.config import ModelConfig
from clca.models.cross_layer import CrossLayerAggregationHead
from clca.models.token_reduced_vit import TokenReducedViT
from clca.system.signals import Interrupted
from clca.training import TrainConfig, features, probing, train
from clca.training.config import identity
from clca.training.logistic import LogisticFit
from clca.training.progress import Display
from clca.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

Make = Callable[..., TrainConfig]
QUICK: dict[str, Any] = {"probe": "only", "probe_views": 1, "epochs": 1, "warmup_epochs": 0, "cooldown_epochs": 0}


def quick(make: Make, cla: bool = True, val_split: str = "auto", **settings: Any) -> TrainConfig:
    return make(model={"cla": cla, "cla_head": "linear"}, data={"val_split": val_split}, **(QUICK | settings))


def test_it_leaves_a_finished_run(make_config: Make) -> None:
    result = train(quick(make_config), quiet=True)
    assert {path.name for path in result.folder.iterdir()} == {
        "config.json", "images.csv", "metrics.jsonl", "model.safetensors", "summary.json"
    }  # fmt: skip
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]["probe"]) == {"C", "views", "loss", "top1", "val"}
    assert lines[1]["train"] == result.train
    evaluation = evaluate(result.folder, split="val", workers=0, device="cpu", precision="no")
    assert result.watched is not None
    assert evaluation.top1 == pytest.approx(result.watched["top1"])
    assert train(quick(make_config), quiet=True) == result  # again: already finished


@pytest.mark.parametrize("cla", [True, False])
def test_its_scores_on_the_training_images_are_those_of_the_saved_model(make_config: Make, cla: bool) -> None:
    result = train(quick(make_config, cla), quiet=True)
    evaluation = evaluate(result.folder, split="train", workers=0, device="cpu", precision="no")
    assert evaluation.top1 == pytest.approx(result.train["top1"])
    assert evaluation.loss == pytest.approx(result.train["loss"], rel=1e-3)


def test_the_fit_takes_no_more_threads_than_the_run(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """NumPy has threads of its own: two runs side by side would wait for each other's."""
    seen, before, fit = [], torch.get_num_threads(), probing.fit_logistic

    def watched(*args: Any, **kwargs: Any) -> LogisticFit:
        seen.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        return fit(*args, **kwargs)

    monkeypatch.setattr(probing, "fit_logistic", watched)
    torch.set_num_threads(1)
    try:
        train(quick(make_config, cache=False), quiet=True)
    finally:
        torch.set_num_threads(before)
    assert seen
    assert set(seen) == {1}


def test_features_are_computed_once(make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(quick(make_config, out=tmp_path / "one", val_split="none"), quiet=True)
    forward = TokenReducedViT.forward_features
    monkeypatch.setattr(TokenReducedViT, "forward_features", lambda self, x: pytest.fail("computed again"))
    again = train(quick(make_config, out=tmp_path / "two", val_split="none"), quiet=True)
    monkeypatch.setattr(TokenReducedViT, "forward_features", forward)
    other = train(quick(make_config, out=tmp_path / "three", val_split="none", cache=False), quiet=True)
    assert again.train == other.train


def test_a_pass_that_was_interrupted_continues(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK", 4)
    seen: list[int] = []
    forward = TokenReducedViT.forward_features

    def counted(self: TokenReducedViT, x: torch.Tensor) -> torch.Tensor:
        if sum(seen) >= 8:
            raise KeyboardInterrupt
        seen.append(len(x))
        return forward(self, x)

    settings = {"batch_size": 4, "val_split": "none", "seed": 5}
    monkeypatch.setattr(TokenReducedViT, "forward_features", counted)
    with pytest.raises(KeyboardInterrupt):
        train(quick(make_config, out=tmp_path / "run", **settings), quiet=True)
    begun = sum(seen)
    monkeypatch.setattr(TokenReducedViT, "forward_features", lambda self, x: (seen.append(len(x)), forward(self, x))[1])
    resumed = train(quick(make_config, out=tmp_path / "run", **settings), quiet=True)
    images = json.loads((resumed.folder / "config.json").read_text())["resolved"]["train_images"]
    assert begun == 8
    assert sum(seen) == images
    monkeypatch.setattr(TokenReducedViT, "forward_features", forward)
    whole = train(quick(make_config, out=tmp_path / "whole", cache=False, **settings), quiet=True)
    assert resumed.train == whole.train


@pytest.mark.parametrize("stop_after", [0, 4])
def test_a_signal_ends_a_pass_and_the_same_run_continues(
    stop_after: int, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "_CHUNK", 4)
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    asked: list[int] = []

    class Stopping(Display):
        def features(self, done: int, total: int) -> None:
            if done >= stop_after and not asked:
                asked.append(done)
                os.kill(os.getpid(), signal.SIGINT)

    settings = {"batch_size": 4, "val_split": "none", "seed": 6}
    with pytest.raises(Interrupted):
        train(quick(make_config, out=tmp_path / "run", **settings), quiet=True, display=Stopping)
    assert not (tmp_path / "run" / "summary.json").exists()
    resumed = train(quick(make_config, out=tmp_path / "run", **settings), quiet=True)
    whole = train(quick(make_config, out=tmp_path / "whole", cache=False, **settings), quiet=True)
    assert resumed.train == whole.train


def test_features_of_images_that_were_read_differently_are_computed_anew(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(quick(make_config, out=tmp_path / "first", val_split="none"), quiet=True)
    monkeypatch.setattr(fill, "READER_VERSION", fill.READER_VERSION + 1)
    forward, computed = TokenReducedViT.forward_features, []
    monkeypatch.setattr(
        TokenReducedViT, "forward_features", lambda self, x: (computed.append(len(x)), forward(self, x))[1]
    )
    train(quick(make_config, out=tmp_path / "second", val_split="none"), quiet=True)
    assert computed


def test_features_are_listed_limited_and_cleared(
    make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    train(quick(make_config, out=tmp_path / "one", val_split="none"), quiet=True)
    (first,) = (tmp_path / "cache" / "features").iterdir()
    assert cli.main(["data", "cache"]) == 0
    assert "of features of frozen models in" in capsys.readouterr().out
    monkeypatch.setenv("CLCA_CACHE_GB", "0.0000001")  # a hundred bytes: there is room for no second set
    train(quick(make_config, out=tmp_path / "two", val_split="none", seed=9), quiet=True)
    (second,) = (tmp_path / "cache" / "features").iterdir()
    assert second != first
    assert cli.main(["data", "cache", "--clear"]) == 0
    assert list((tmp_path / "cache" / "features").iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"\x08" + bytes(40)])
def test_damaged_features_are_computed_again(
    content: bytes, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    first = train(quick(make_config, out=tmp_path / "one"), quiet=True)
    for file in (tmp_path / "cache" / "features").rglob("*.safetensors"):
        file.write_bytes(content)
    assert train(quick(make_config, out=tmp_path / "two"), quiet=True).train == first.train


def test_the_published_head_is_refused_by_name(make_config: Make) -> None:
    config = make_config().model_dump() | QUICK
    with pytest.raises(ValueError, match="probe: only fits a linear head: choose cla_head linear"):
        TrainConfig.model_validate(config)


def test_training_starts_from_the_probe(make_config: Make) -> None:
    result = train(quick(make_config, epochs=2, probe="first", lr=1e-6, min_lr=1e-7), quiet=True)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert set(lines[0]["probe"]) == {"C", "views", "loss", "top1", "val"}
    assert result.train["top1"] > 0.6  # at a rate that alone teaches nothing in two epochs


@pytest.mark.parametrize("rates", [{}, {"reduction": "evit", "keep_rates": (0.3, 1.0)}], ids=["one rate", "two rates"])
def test_training_keeps_the_statistics_of_the_probe(make_config: Make, tmp_path: Path, rates: dict[str, Any]) -> None:
    """Small batches have other means than all images; the weights are trained."""
    probed, trained = (
        train(
            make_config(
                model={"cla_head": "linear", **rates}, out=tmp_path / probe, data={"val_split": "none"},
                **(QUICK | {"probe": probe, "epochs": epochs, "lr": 1e-3}),
            ),
            quiet=True,
        )
        for probe, epochs in (("only", 1), ("first", 2))
    )  # fmt: skip
    before, after = (load_file(run.folder / "model.safetensors") for run in (probed, trained))
    statistics = {name for name in before if "running_mean" in name or "running_var" in name}
    assert statistics
    for name in statistics:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before["cla_head.classifier.weight"], after["cla_head.classifier.weight"])
    assert not torch.equal(before["blocks.0.mlp.fc1.weight"], after["blocks.0.mlp.fc1.weight"])


def test_training_that_makes_the_probe_worse_keeps_the_probe(make_config: Make, tmp_path: Path) -> None:
    probe = train(quick(make_config, out=tmp_path / "quick"), quiet=True)
    spoilt = train(quick(make_config, out=tmp_path / "run", epochs=2, probe="first", lr=5.0, ema=None), quiet=True)
    if spoilt.watched["top1"] == probe.watched["top1"]:
        assert spoilt.kept_epoch == 0
    assert spoilt.watched["top1"] >= probe.watched["top1"]


def test_runs_of_earlier_versions_keep_their_identity(make_config: Make) -> None:
    assert not {"probe", "recipe", "model.cla_head"} & identity(make_config()).keys()
    assert identity(quick(make_config))["probe"] == "only"


@pytest.mark.parametrize("asked", [2, None, 8])
def test_the_views_are_symmetries_of_the_square_and_each_is_stored(
    asked: int | None, make_config: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLCA_CACHE", str(tmp_path / "cache"))
    seen: list[torch.Tensor] = []
    forward = TokenReducedViT.forward_features
    monkeypatch.setattr(TokenReducedViT, "forward_features", lambda self, x: (seen.append(x), forward(self, x))[1])
    config = quick(make_config, out=tmp_path / "one", val_split="none", probe_views=asked, batch_size=100)
    result = train(config, quiet=True)
    views = 4 if asked is None else asked
    assert len(seen) == views
    for image, flipped in zip(seen, [seen[0], seen[0].flip(3), seen[0].flip(2), seen[0].flip(2, 3)], strict=False):
        assert torch.equal(image, flipped)
    turned = {tuple(torch.rot90(one, quarter, (2, 3)).flatten().tolist())
              for one in (seen[0], seen[0].flip(3)) for quarter in range(4)}  # fmt: skip
    assert {tuple(image.flatten().tolist()) for image in seen} <= turned
    assert len({tuple(image.flatten().tolist()) for image in seen}) == views
    assert len(list((tmp_path / "cache" / "features").iterdir())) == views
    again = train(quick(make_config, out=tmp_path / "two", val_split="none", probe_views=asked), quiet=True)
    assert again.train == result.train
    assert len(seen) == views


@pytest.mark.parametrize(
    ("images", "trains", "views"),
    [(2000, False, 4), (2000, True, 8), (2001, True, 2), (5000, False, 2), (5001, True, 1)],
)
def test_more_photographs_are_read_in_fewer_views(images: int, trains: bool, views: int) -> None:
    assert probing._usual_views(images, trains) == views


def test_a_run_with_a_probe_is_another_run(make_config: Make, tmp_path: Path) -> None:
    train(quick(make_config, out=tmp_path / "run"), quiet=True)
    with pytest.raises(ClcaError, match="holds a different run"):
        RunFolder(tmp_path / "run").state_for(make_config(out=tmp_path / "run"))


def test_the_linear_head_reads_every_depth_and_is_explained() -> None:
    model = clca.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, embed_dim=24, num_heads=3, depth=4, num_classes=3,
        cla_head="linear", reduction="evit", keep_rate=0.5,
    ).eval()  # fmt: skip
    assert not isinstance(model.cla_head, CrossLayerAggregationHead)
    head: Any = model.cla_head
    torch.nn.init.normal_(head.classifier.weight)
    head.norm.running_mean.normal_()
    tokens = model.forward_features(torch.randn(2, 3, 32, 32))
    weight = head.classifier.weight.view(3, 3, 24)
    normed = torch.nn.functional.layer_norm(tokens, (24,))
    scaled = (normed.flatten(1) - head.norm.running_mean) / (head.norm.running_var + head.norm.eps).sqrt()
    torch.testing.assert_close(head(tokens), torch.einsum("bgc,kgc->bk", scaled.view(2, 3, 24), weight))
    from clca.explain.depths import depth_shares, kernel_shares

    values, baseline = depth_shares(head, tokens[0], 1)
    assert float(values.sum() + baseline) == pytest.approx(head(tokens)[0, 1].item(), abs=1e-4)
    np.testing.assert_allclose(kernel_shares(head, tokens[0])[:, 1].detach(), values, atol=1e-4)


@pytest.mark.parametrize("cla", [True, False])
def test_one_head_is_fitted_for_several_keep_rates(make_config: Make, cla: bool, tmp_path: Path) -> None:
    config = quick(make_config, cla)
    fields = config.model.model_dump(exclude={"keep_rate"}) | {"keep_rates": (0.1, 0.5, 1.0)}
    config = config.model_copy(update={"model": ModelConfig(**fields)})
    result = train(config, quiet=True)
    scores = []
    for rate in (0.1, 0.5, 1.0):
        found = evaluate(result.folder, split="train", keep_rate=rate, workers=0, device="cpu", precision="no")
        scores.append((found.top1, found.loss))
    top1, loss = np.mean(scores, axis=0)
    assert top1 == pytest.approx(result.train["top1"])
    assert loss == pytest.approx(result.train["loss"], rel=1e-3)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert list(lines[0]["probe"]["rates"]) == ["0.1", "0.5", "1"]
    if cla:  # the features of one rate are those of an ordinary model, so they are standardised as there
        model = clca.from_pretrained(result.folder)
        for rate in (0.1, 1.0):
            alone = make_config(
                model={"cla_head": "linear", "keep_rate": rate}, out=tmp_path / str(rate), data={}, **QUICK
            )
            other = clca.from_pretrained(train(alone, quiet=True).folder)
            model.keep_rate = rate
            for name in ("running_mean", "running_var"):
                found, expected = (getattr(each.cla_head.norm, name) for each in (model, other))
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_training_for_several_keep_rates_starts_from_the_probe(make_config: Make) -> None:
    config = quick(make_config, epochs=2, probe="first", lr=1e-6, min_lr=1e-7, ema=0.9)
    fields = config.model.model_dump(exclude={"keep_rate"}) | {"keep_rates": (0.1, 0.5, 1.0)}
    result = train(config.model_copy(update={"model": ModelConfig(**fields)}), quiet=True)
    assert result.train["top1"] > 0.6  # at a rate that alone teaches nothing in two epochs
