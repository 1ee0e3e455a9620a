"""On a GPU of NVIDIA's, where there is one: the same numbers as on the CPU, and the same as CUDA graphs."""

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import clca
from clca.benchmark import BenchmarkConfig, benchmark
from clca.benchmark.candidates import Candidate, CandidateBuilder
from clca.evaluation import evaluate
from clca.reductions import list_reductions
from clca.training import TrainConfig, resume, train, trainer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU of NVIDIA's here")

TINY = {"patch_size": 8, "embed_dim": 48, "num_heads": 3, "depth": 6}
REDUCTIONS = list_reductions()


def _model(reduction: str) -> clca.TokenReducedViT:
    torch.manual_seed(0)
    return clca.create_model(
        "vit_tiny_patch16_224", **TINY, img_size=64, num_classes=5, reduction=reduction,
        keep_rate=1.0 if reduction == "none" else 0.5,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_logits_and_gradients_as_on_the_cpu(reduction: str) -> None:
    # In double precision, or rounding could decide which tokens stay.
    model, images = _model(reduction).double(), torch.randn(3, 3, 64, 64, dtype=torch.float64)
    labels = torch.tensor([0, 3, 1])
    found = {}
    for device in ("cpu", "cuda"):
        there = copy.deepcopy(model).to(device)  # dropout is off, DynamicViT's noise too
        logits = there(images.to(device))
        F.cross_entropy(logits, labels.to(device)).backward()
        gradients = {n: p.grad.cpu() for n, p in there.named_parameters() if p.grad is not None}
        found[device] = logits.detach().cpu(), gradients
    torch.testing.assert_close(found["cuda"][0], found["cpu"][0], rtol=1e-8, atol=1e-10)
    assert found["cuda"][1].keys() == found["cpu"][1].keys()
    for name, gradient in found["cpu"][1].items():
        torch.testing.assert_close(found["cuda"][1][name], gradient, rtol=1e-6, atol=1e-9, msg=lambda m, n=name: n + m)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_an_image_alone_is_the_same_in_a_batch(reduction: str, precision: str) -> None:
    model, images = _model(reduction).cuda(), torch.randn(4, 3, 64, 64, device="cuda")
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=precision != "fp32"):
        together, alone = model(images).float(), model(images[2:3]).float()
    assert together.isfinite().all()
    torch.testing.assert_close(alone[0], together[2], rtol=0, atol=1e-4 if precision == "fp32" else 0.1)


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_weights_that_are_kept_change_nothing(reduction: str) -> None:
    model, images = _model(reduction).cuda(), torch.randn(3, 3, 64, 64, device="cuda")

    def answer() -> torch.Tensor:
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):  # anew: autocast keeps casts too, unnoticed
            return model(images)

    wanted = answer()
    with clca.prepacked(model):
        torch.testing.assert_close(answer(), wanted, rtol=0, atol=0.02)
        with torch.no_grad():
            model.blocks[0].mlp.fc1.weight.mul_(2)
        changed = answer()
    torch.testing.assert_close(answer(), changed, rtol=0, atol=0.02)
    assert not torch.equal(changed, wanted)


IN_A_GRAPH = [name for name in REDUCTIONS if name != "none"]


@pytest.mark.parametrize("reduction", IN_A_GRAPH)
def test_a_replay_gives_what_the_model_gives(reduction: str) -> None:
    candidate = Candidate("vit_tiny_patch16_224", 64, 3, reduction, 0.5, "bf16", "cudagraph", device="cuda")
    builder = CandidateBuilder()
    model = builder.model(candidate)
    replay = builder.work(candidate, model)
    images = builder.images(candidate)  # which the graph reads
    for seed in (1, 2):
        torch.manual_seed(seed)
        images.copy_(torch.randn(images.shape))
        with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
            wanted = model(images)
        torch.testing.assert_close(replay(), wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("reduction", IN_A_GRAPH)
def test_a_replayed_step_changes_the_weights(reduction: str) -> None:
    candidate = Candidate("vit_tiny_patch16_224", 64, 3, reduction, 0.5, "bf16", "cudagraph", True, device="cuda")
    builder = CandidateBuilder()
    model = builder.model(candidate)
    replay = builder.work(candidate, model)
    builder._optimizers[True].param_groups[0]["lr"].fill_(1e-3)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    replay()
    same = {name for name, parameter in model.named_parameters() if torch.equal(parameter, before[name])}
    assert not {name for name in same if name.startswith(("blocks", "cla_head.classifier"))}
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def test_benchmark_in_cuda_graphs() -> None:
    config = BenchmarkConfig(
        models=("vit_tiny_patch16_224",), img_sizes=(64,), batch_sizes=(2,), reductions=("evit", "ats"),
        keep_rates=(0.5,), precisions=("bf16",), modes=("eager", "cudagraph"), rounds=3,
    )  # fmt: skip
    rows = {(row.candidate.reduction, row.candidate.mode): row for row in benchmark(config).rows}
    assert rows["evit", "cudagraph"].milliseconds is not None
    assert rows["evit", "cudagraph"].speed_up is not None
    assert rows["evit", "eager"].peak_mib
    assert rows["ats", "cudagraph"].speed_up is not None


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_train_stop_resume_evaluate_and_load(tmp_path: Path, precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    for number in range(24):  # noise whose dark channel tells the class
        pixels = torch.randint(0, 256, (40, 40, 3), dtype=torch.uint8, generator=draw)
        pixels[..., number % 2] //= 4
        file = tmp_path / "images" / "train" / "ab"[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.numpy()).save(file)
    config = TrainConfig.model_validate(
        {
            "model": {"backbone": "vit_tiny_patch16_224", "backbone_kwargs": TINY, "img_size": 32, "reduction": "evit"},
            "data": {"root": str(tmp_path / "images"), "val_split": "none"},
            "pretrained": False,
            "out": tmp_path / "run",
            "epochs": 20,
            "batch_size": 8,
            "lr": 1e-3,
            "precision": precision,
            "workers": 1,
        }
    )
    one_step = trainer._Trainer._one_step

    def stopping(loop: Any, batches: Any) -> bool:
        if loop.progress.step == 7:
            loop.ask_to_stop(signal.SIGINT)
        return one_step(loop, batches)

    monkeypatch.setattr(trainer._Trainer, "_one_step", stopping)
    with pytest.raises(trainer.Interrupted, match="after step 8"):
        train(config, quiet=True)
    result = resume(tmp_path / "run", quiet=True)
    assert (result.epochs, result.steps) == (20, 40)
    found = evaluate(tmp_path / "run", split="train")
    assert found.device == "cuda"
    assert found.top1 > 0.9
    with torch.no_grad():
        assert clca.from_pretrained(tmp_path / "run")(torch.randn(2, 3, 32, 32)).isfinite().all()
