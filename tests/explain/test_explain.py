"""Explanations: where patches went, what was looked at, and what decided, in the original image's pixels."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

import clca
from clca.cli.main import main
from clca.data.transforms import from_preprocess
from clca.errors import ClcaError
from clca.explain import View, curves, depth_shares, detail_share, explain, kernel_shares
from clca.explain.depths import mean_cls_tokens
from clca.explain.explaining import integrated_gradients, to_input
from clca.explain.recording import record_forward, scatter
from clca.explain.survivors import trace_survivors
from clca.plots.explanation import draw_explanation, outline
from clca.plots.survivors import paint

TINY: dict[str, Any] = {"patch_size": 8, "embed_dim": 24, "num_heads": 3, "depth": 4}
PREPROCESS = {
    "img_size": 32, "resize": 37, "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.25] * 3, "square": True,
}  # fmt: skip
BACKBONES = {
    "one prefix token": ("vit_tiny_patch16_224", {}),
    "two": ("deit_tiny_distilled_patch16_224", {}),
    "five": ("vit_small_patch14_reg4_dinov2", {}),
}


def make(
    reduction: str = "evit", backbone: str = "vit_tiny_patch16_224", fresh: bool = False, **more: Any
) -> clca.TokenReducedViT:
    """A small model; its weights are large ones at random, so that everything matters, unless it is `fresh`."""
    torch.manual_seed(1)
    rate = 1.0 if reduction == "none" else more.pop("keep_rate", 0.5)
    options = {"num_classes": 4, "img_size": 32, **TINY, **more}
    model = clca.create_model(backbone, reduction=reduction, keep_rate=rate, **options).eval()
    model.classes, model.preprocess = ["oak", "elm", "ash", "fir"], dict(PREPROCESS)
    if fresh:
        return model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "reductions" not in name:
                parameter.normal_(0, 0.2)
        if model.cla_head is not None:  # as training leaves it: its statistics are not those of a new one
            model.cla_head.norm_in.running_mean.normal_()
            model.cla_head.norm_out.running_mean.normal_()
            model.cla_head.norm_out.running_var.uniform_(0.5, 2)
    return model


def photo(width: int = 61, height: int = 40, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


@pytest.mark.parametrize("reduction", clca.list_reductions())
def test_every_patch_is_held_by_one_token_or_dropped_as_the_trace_says(reduction: str) -> None:
    model, image = make(reduction), photo()
    found = explain(model, image)
    with torch.no_grad():
        logits, trace = model.forward_trace(to_input(model, image))
    assert found.logit == pytest.approx(logits.max().item(), abs=1e-5)
    assert found.target == found.top[0][0] == model.classes[int(logits.argmax())]
    assert [p for _, p in found.top] == pytest.approx(logits[0].softmax(0).sort(descending=True).values.tolist())
    assert [stage.block for stage in found.stages] == (list(model.locations) if reduction != "none" else [])
    for stage in found.stages:
        assert stage.owner.tolist() == trace.owner[stage.block][0].tolist()
        alone = [p for p in range(16) if not stage.gone[p] and (stage.owner == stage.owner[p]).sum() == 1]
        grouped = [patch for patches in stage.groups.values() for patch in patches]
        assert sorted([*np.flatnonzero(stage.gone), *alone, *grouped]) == list(range(16))
        assert all(len(patches) > 1 for patches in stage.groups.values())
        pixels = found.owner_pixels(stage)
        assert pixels.shape == (40, 61)
        assert set(np.unique(pixels)) == {-2, *stage.owner.tolist()}
    if found.stages:
        assert (found.stages[-1].gone.any() or found.stages[-1].groups) or reduction in ("patchmerger", "sit")
    assert np.isfinite(found.evidence).all()
    assert np.abs(found.evidence).max() > 0
    assert found.pixels(found.evidence).shape == (40, 61)
    stored = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert np.ravel(stored["evidence"]) == pytest.approx(found.evidence, rel=1e-4)
    assert [stage["owner"] for stage in stored["stages"]] == [s.owner.reshape(4, 4).tolist() for s in found.stages]


@pytest.mark.parametrize("economical", [True, False])
def test_a_fused_token_of_one_patch_is_not_one_that_was_kept(economical: bool) -> None:
    model = make("evit", keep_rate=(0.93, 1.0, 0.5), clc=False, cla=False)
    model.economical = economical
    first, second, third = explain(model, photo()).stages
    assert first.gone.sum() == second.gone.sum() == 1  # 15 of 16 are kept; then nothing is dropped, nor fused again
    assert first.owner[first.gone] == 16
    assert (third.gone >= first.gone).all()
    assert 8 <= third.gone.sum() <= 9  # of 16 candidates, the fused one among them, 8 are kept
    assert not third.groups

    images = to_input(model, photo())
    drawn = trace_survivors(model, "EViT", images)
    pixels = np.random.default_rng(0).random((32, 32, 3))
    for stage, own in zip(drawn.stages, (first, second, third), strict=True):
        painted, _ = paint(pixels, stage.owner[0], (4, 4), stage.fused[0])
        kept = (painted == pixels).reshape(4, 8, 4, 8, 3).all(axis=(1, 3, 4)).ravel()
        assert kept.tolist() == (~own.gone).tolist()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("cla", [True, False])
@pytest.mark.parametrize("reduction", ["none", "evit", "tome", "ats"])
def test_attention_is_shared_out_whole(reduction: str, cla: bool, backbone: str) -> None:
    name, options = BACKBONES[backbone]
    model = make(reduction, name, cla=cla, **options)
    found = explain(model, photo())
    assert [depth.block for depth in found.attention] == [1, 2, 3]
    for depth in found.attention:
        assert depth.patches.min() >= 0
        assert depth.patches.sum() + depth.elsewhere == pytest.approx(1, abs=1e-6)
        assert depth.elsewhere > 0  # CLS looks at itself too
    assert len(found.depths) == (3 if cla else 0)
    assert (found.baseline is None) == (not cla)


def test_attention_is_the_softmax_of_the_cls_query() -> None:
    model = make("none", cla=False, clc=False, locations=[1])
    found = explain(model, photo())
    block = model.blocks[1]
    with torch.no_grad():
        x = block.norm1(record_forward(model, to_input(model, photo())).inputs[1].tokens[0])
        q, k, _ = block.attn.qkv(x).view(17, 3, 3, 8).permute(1, 2, 0, 3)
        row = (q[:, :1] @ k.transpose(1, 2) / 8**0.5).softmax(-1).mean(0)[0]
    assert found.attention[0].patches == pytest.approx(row[1:].numpy(), abs=1e-6)
    assert found.attention[0].elsewhere == pytest.approx(row[0].item(), abs=1e-6)


@pytest.mark.parametrize("reduction", ["topk", "evit", "tome", "ats", "dynamicvit"])
def test_at_keep_rate_one_nothing_goes(reduction: str) -> None:
    for stage in explain(make(reduction, keep_rate=1.0), photo()).stages:
        if reduction not in ("ats", "dynamicvit"):  # which may sample fewer, or weigh carriers against patches
            assert not stage.gone.any()
            assert not stage.groups


def test_an_image_alone_is_explained_as_the_model_sees_it_in_a_batch() -> None:
    model = make("ats")
    with torch.no_grad():
        together, trace = model.forward_trace(torch.cat([to_input(model, photo(seed=s)).clone() for s in range(3)]))
    for s in range(3):
        found = explain(model, photo(seed=s), target="ash")
        assert found.target == "ash"
        assert found.logit == pytest.approx(together[s, 2].item(), abs=1e-4)
        for stage in found.stages:
            assert stage.owner.tolist() == trace.owner[stage.block][s].tolist()


def test_scatter_splits_evenly_and_gives_the_dropped_nothing() -> None:
    values, owner = torch.tensor([9.0, 6.0, 1.0]), torch.tensor([1, -1, 1, 2, 1])
    assert scatter(values, owner).tolist() == [2, 0, 2, 1, 2]


# -- depths --------------------------------------------------------------------------------------------------------


def test_shares_of_depths_add_up_and_what_is_equal_has_equal_shares() -> None:
    model = make("evit")
    found = explain(model, photo())
    assert found.baseline is not None
    assert sum(depth.logit for depth in found.depths) == pytest.approx(found.logit - found.baseline, abs=1e-4)
    assert sum(depth.kernel for depth in found.depths) == pytest.approx(1)
    assert [depth.block for depth in found.depths] == [1, 2, 3]

    head = model.cla_head
    tokens = torch.randn(3, 24)
    shares = kernel_shares(head, tokens)
    features = []
    head.norm_out.register_forward_hook(lambda *parts: features.append(parts[2].detach()))
    head(torch.stack([tokens, mean_cls_tokens(head, 3)]))
    torch.testing.assert_close(shares.sum(0), features[0][0] - features[0][1], rtol=1e-4, atol=1e-5)

    with torch.no_grad():
        head.depthwise.weight[:, :, 1] = head.depthwise.weight[:, :, 0]
        head.depthwise.weight[:, :, 2] = 0
    tokens[1] = tokens[0]
    values, _ = depth_shares(head, tokens, 0)
    assert values[0].item() == pytest.approx(values[1].item(), abs=1e-6)
    assert values[2].item() == 0


@pytest.mark.parametrize("head", ["convolution", "linear"])
def test_the_average_of_the_patches_has_a_share_too(head: str) -> None:
    model = make("evit", fresh=True, cla_head=head, cla_average=True)
    with torch.no_grad():
        torch.nn.init.normal_(model.get_classifier().weight)
    found = explain(model, photo())
    assert found.baseline is not None
    assert sum(depth.logit for depth in found.depths) == pytest.approx(found.logit - found.baseline, abs=1e-4)
    assert [depth.name for depth in found.depths] == ["patches, block 1", "block 1", "block 2", "block 3"]
    assert found.depths[0].logit != 0


def test_with_many_depths_shares_still_add_up() -> None:
    head = clca.models.token_reduced_vit.CrossLayerAggregationHead(8, 13, 3).eval()
    tokens = torch.randn(13, 8)
    values, baseline = depth_shares(head, tokens, 1)
    assert len(values) == 13
    with torch.no_grad():
        assert values.sum().item() + baseline == pytest.approx(head(tokens[None])[0, 1].item(), abs=1e-5)


def test_two_depths_by_hand() -> None:
    head = clca.models.token_reduced_vit.CrossLayerAggregationHead(8, 2, 3).eval()
    tokens, gone = torch.randn(2, 8), torch.zeros(2, 8)
    with torch.no_grad():
        none, first, second, both = (
            head(torch.stack(pair)[None])[0, 0].item()
            for pair in ((gone[0], gone[1]), (tokens[0], gone[1]), (gone[0], tokens[1]), (tokens[0], tokens[1]))
        )
    values, baseline = depth_shares(head, tokens, 0)
    assert baseline == pytest.approx(none, abs=1e-6)
    assert values[0].item() == pytest.approx((first - none + both - second) / 2, abs=1e-6)


# -- evidence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["none", "evit", "tome", "patchmerger"])
def test_evidence_peaks_where_one_patch_decides(reduction: str) -> None:
    model = make(reduction, fresh=True, num_classes=2, locations=[2], weight_init="jax")
    model.classes, model.preprocess = ["dark", "bright"], PREPROCESS | {"resize": 32}
    decides = 6  # second row, third column
    draw = torch.Generator().manual_seed(3)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        x, y = torch.randn(count, 3, 32, 32, generator=draw) * 0.3, torch.randint(2, (count,), generator=draw)
        x[:, :, 8:16, 16:24] += 2.0 * (2 * y - 1)[:, None, None, None]
        return x, y

    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        x, y = images(32)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.eval()
    x, y = images(12)
    with torch.no_grad():
        assert (model(x).argmax(1) == y).all()
    labelled = list(zip(x, y.tolist(), strict=True))
    maps = np.stack([integrated_gradients(model, image[None], label) for image, label in labelled])
    # PatchMerger softly mixes all patches, so that the noise of another one counts in some images.
    assert (maps.argmax(axis=1) == decides).mean() >= (0.7 if reduction == "patchmerger" else 1)
    share, chance = detail_share(maps.mean(axis=0), np.eye(16)[decides])
    assert share > 0.5 > chance == 1 / 16
    image, label = labelled[0]
    assert integrated_gradients(model, image[None], 1 - label) == pytest.approx(-maps[0], abs=1e-5)
    best = curves(model, image[None], np.argsort(-maps[0]), label)
    worst = curves(model, image[None], np.argsort(maps[0]), label)
    assert best.deletion < worst.deletion
    assert best.insertion > worst.insertion


def test_evidence_adds_up_to_what_the_image_changes_where_nothing_is_reduced() -> None:
    model = make("none")
    image = to_input(model, photo()) * 0.3
    evidence = integrated_gradients(model, image, 1)
    with torch.no_grad():
        logits = model(torch.cat([image, image.mean(dim=(2, 3), keepdim=True).expand_as(image)]))
    score = (logits[:, 1] - logits.mean(1)).tolist()
    assert evidence.sum() == pytest.approx(score[0] - score[1], abs=0.05 * np.abs(evidence).sum())


def test_chance_and_no_evidence() -> None:
    share, chance = detail_share(np.array([1.0, -5.0, 3.0, 0.0]), np.array([0.5, 1.0, 0.0, 0.1]))
    assert share == pytest.approx(0.125)
    assert chance == pytest.approx(0.4)
    assert np.isnan(detail_share(-np.ones(4), np.ones(4))[0])


# -- pixels --------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(40, 300),
    height=st.integers(40, 300),
    square=st.booleans(),
    resize=st.integers(24, 60),
)
def test_patches_see_the_pixels_that_the_view_says(width: int, height: int, square: bool, resize: int) -> None:
    preprocess = PREPROCESS | {"square": square, "resize": resize, "mean": [0.0] * 3, "std": [1.0] * 3}
    across, down = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    ramps = np.stack([255 * across / width, 255 * down / height, np.full_like(down, 255)], axis=-1)
    seen = from_preprocess(preprocess)(Image.fromarray(ramps.round().astype(np.uint8))).numpy()
    view = View.of((width, height), preprocess, (4, 4))
    x, y = view.edges()
    patches = seen.reshape(3, 4, 8, 4, 8).transpose(1, 3, 0, 2, 4).reshape(4, 4, 3, 64)
    whole = patches[:, :, 2].min(axis=2) > 0.99  # none of it is the crop's padding
    assert whole.any()
    for row, column in np.argwhere(whole):
        mean = patches[row, column].mean(axis=1)
        assert mean[0] == pytest.approx((x[column] + x[column + 1]) / 2 / width, abs=0.015)
        assert mean[1] == pytest.approx((y[row] + y[row + 1]) / 2 / height, abs=0.015)
    pixels = view.to_pixels(np.arange(16), -2)
    assert pixels.shape == (height, width)
    for py, px in ((0, 0), (height // 2, width // 2), (height - 1, width - 1)):
        column, row = np.searchsorted(x, px + 0.5, side="right") - 1, np.searchsorted(y, py + 0.5, side="right") - 1
        inside = 0 <= column < 4 and 0 <= row < 4
        assert pixels[py, px] == (row * 4 + column if inside else -2)


def test_a_mask_is_averaged_over_each_patch() -> None:
    view = View((8, 4), (0.0, 0.0, 8.0, 4.0), (2, 2))
    mask = np.zeros((4, 8), dtype=bool)
    mask[0, :4] = True
    mask[2:, 4:] = True
    assert view.share_of(mask).tolist() == [0.5, 0, 0, 1]


# -- bad input -----------------------------------------------------------------------------------------------------


def test_what_cannot_be_explained_is_said(tmp_path: Path) -> None:
    model = make()
    with pytest.raises(ClcaError, match="no class 'yew': choose one of oak"):
        explain(model, photo(), target="yew")
    with pytest.raises(ClcaError, match="no class 4: the model has 4"):
        explain(model, photo(), target=4)
    with pytest.raises(ClcaError, match="no such file"):
        explain(model, tmp_path / "none.png")
    model.classes = None
    with pytest.raises(ClcaError, match=r"set model\.classes"):
        explain(model, photo())


def test_the_model_is_left_as_it_was() -> None:
    model = make()
    before = dict(vars(model)), {name: value.clone() for name, value in model.state_dict().items()}
    explain(model, photo())
    assert type(model) is clca.TokenReducedViT
    assert set(vars(model)) == set(before[0])
    assert all(torch.equal(value, before[1][name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


# -- figures and files ---------------------------------------------------------------------------------------------


def cells(path: Path) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


@pytest.mark.parametrize("reduction", ["none", "tome"])
def test_a_figure_shows_every_stage(reduction: str, tmp_path: Path) -> None:
    found = explain(make(reduction, cla=reduction != "none"), photo(90, 40))
    draw_explanation(tmp_path / "seen.png", found, "$x_1")  # a file's name may be no formula
    assert [path.name for path in tmp_path.iterdir()] == ["seen.png"]
    drawn = cells(tmp_path / "seen.png")
    assert drawn.shape[1] > 1200
    assert drawn.std() > 10


def test_a_model_with_a_convolutional_stem_is_explained_by_patch(tmp_path: Path) -> None:
    """The patch of its embedding is one pixel of the stem's output."""
    torch.manual_seed(0)
    model = clca.create_model("clca_leaf_tiny", img_size=64, num_classes=4, reduction="evit", keep_rate=0.5).eval()
    model.classes, model.preprocess = ["oak", "elm", "ash", "fir"], PREPROCESS | {"img_size": 64, "resize": 73}
    found = explain(model, photo())
    assert found.view.grid == (4, 4)
    assert found.evidence.shape == found.stages[0].owner.shape == (16,)
    draw_explanation(tmp_path / "leaf.png", found)
    with Image.open(tmp_path / "leaf.png") as drawn:
        assert drawn.width > 300
    found_curves = curves(model, to_input(model, photo()), np.argsort(-found.evidence), 0)
    assert 0 <= found_curves.deletion <= 1


def test_outlines_go_round_each_group_once() -> None:
    view = View((40, 40), (0.0, 0.0, 40.0, 40.0), (4, 4))
    inside = np.zeros(16, dtype=bool)
    inside[[5, 6]] = True
    edges = {tuple(sorted(edge)) for edge in outline(view, inside, 0.0)}
    assert len(edges) == 6
    assert sum(abs(a[0] - b[0]) + abs(a[1] - b[1]) for a, b in edges) == 60  # of 10-pixel patches, one wide, two long
    inset = outline(view, inside, 0.1)
    assert all(11 <= x <= 29 and 11 <= y <= 19 for edge in inset for x, y in edge)


def test_predict_writes_an_explanation_of_every_readable_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make().save_pretrained(str(tmp_path / "run"))
    names = ["a/leaf.png", "b/leaf.png", f"b/{'ü' * 100}.png", "b/.hidden $x_1$.png"]
    for seed, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        photo(30 + seed, 50, seed).save(tmp_path / name)
    (tmp_path / "b" / "text.png").write_text("words")
    photos = [str(tmp_path / name) for name in [*names, "b/text.png"]]
    out = tmp_path / "new" / "seen"
    options = ["--explain", str(out), "--format", "jsonl", "--precision", "no", "--device", "cpu"]
    assert main(["predict", str(tmp_path / "run"), *photos, *options]) == 1
    said = capsys.readouterr()
    assert "text.png: is text, not an image" in said.err
    answers = [json.loads(line) for line in said.out.splitlines()]
    assert [answer["path"] for answer in answers] == photos
    assert answers.pop()["error"]
    files = sorted(path.name for path in out.iterdir())
    assert len(files) == 2 * len(names)
    assert not any(name.startswith(".") for name in files)
    stored = {numbers["path"]: numbers for numbers in (json.loads(path.read_text()) for path in out.glob("*.json"))}
    for answer in answers:
        numbers = stored[answer["path"]]
        assert (out / numbers["figure"]).is_file()
        assert numbers["target"]["class"] == answer["top"][0]["class"]
        assert numbers["target"]["probability"] == pytest.approx(answer["top"][0]["probability"], abs=1e-4)
    assert main(["predict", str(tmp_path / "run"), photos[0], *options]) == 0
    assert sorted(path.name for path in out.iterdir()) == files


def test_a_folder_that_cannot_be_written_is_said_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["predict", str(tmp_path / "no run"), "x.png", "--explain", str(tmp_path / "file")]) == 2
    assert "nothing can be written there" in capsys.readouterr().err
