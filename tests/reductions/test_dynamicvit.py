"""DynamicViT in training, which no golden vector pins: masked attention, policies, the cached average, the loss."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from golden_vectors import published_gradient
from small_models import Pair, make_pair
from torch import Tensor
from torch.nn import functional as F

SCENARIOS: dict[str, dict[str, Any]] = {
    "clca": {},
    "registers": {"style": "registers"},
    "distilled, own heads": {"style": "distilled", "cla": False},
    "average pool": {"style": "average", "cla": False},
    "rates": {"keep_rate": (0.9, 0.3, 0.7)},
    "two carriers, no average": {"num_clr": 2, "clc_gap": False},
    "average only": {"num_clr": 0},
    "from block 0": {"locations": (0, 2)},
    "bare": {"cla": False, "clc": False},
    "2x2": {"grid": 2, "keep_rate": 0.25},
}


def straight_through(log_p: Tensor, noise: Tensor) -> Tensor:
    """Hard Gumbel-softmax at temperature 1 with the given noise: one-hot forward, softmax backward. [n, 2] -> [n, 2]"""
    soft = torch.softmax(log_p + noise, dim=-1)
    hard = F.one_hot(soft.argmax(dim=-1), 2).to(soft.dtype)
    return hard - soft.detach() + soft


def gumbel_noise(location: int, shape: torch.Size, lift: float = 0.0) -> Tensor:
    """The noise of one location, [B, n, 2]; `lift` is added to "drop"."""
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(100 + location), dtype=torch.float64)
    noise = -torch.log(-torch.log(uniform.clamp(1e-9, 1 - 1e-9)))
    return noise + torch.tensor([0.0, lift])


@pytest.fixture
def fixed_noise(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes torch's Gumbel-softmax use `gumbel_noise`, location after location."""

    def install(lift: float = 0.0) -> None:
        calls = iter(range(100))

        def gumbel_softmax(
            logits: Tensor, tau: float = 1, hard: bool = False, eps: float = 1e-10, dim: int = -1
        ) -> Tensor:
            assert hard
            assert tau == 1
            assert dim in (-1, 2)
            return straight_through(logits, gumbel_noise(next(calls), logits.shape, lift).to(logits))

        monkeypatch.setattr(F, "gumbel_softmax", gumbel_softmax)

    return install


def reference_training(pair: Pair, lift: float = 0.0) -> tuple[Tensor, Tensor]:
    """Logits and ratio loss of the plain reference in training mode."""
    batch = len(pair.images)

    def decide_for(b: int) -> Callable[[int, Tensor], Tensor]:
        def decide(location: int, log_p: Tensor) -> Tensor:
            return straight_through(log_p, gumbel_noise(location, torch.Size((batch, *log_p.shape)), lift)[b])[:, 0]

        return decide

    outcomes = pair.reference(pair.images, training=True, decide=[decide_for(b) for b in range(batch)])
    return torch.stack([outcome.logits for outcome in outcomes]), pair.reference.ratio_loss(outcomes)


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_logits_loss_and_gradients(scenario: str, fixed_noise: Callable[..., None]) -> None:
    pair = make_pair(**({"reduction": "dynamicvit", "keep_rate": 0.6, "images": 3} | SCENARIOS[scenario]))
    target = torch.tensor([1, 2, 6])
    for tensor in pair.reference.w.values():
        tensor.requires_grad_(tensor.is_floating_point())
    wanted, wanted_ratio = reference_training(pair)
    (F.cross_entropy(wanted, target) + wanted_ratio).backward()

    fixed_noise()
    model = pair.model.train()
    logits = model(pair.images)
    ratio = model.auxiliary_loss
    (F.cross_entropy(logits, target) + ratio).backward()
    torch.testing.assert_close(logits, wanted, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ratio, wanted_ratio, rtol=1e-8, atol=1e-10)
    predictors = 0
    for name, tensor in pair.reference.w.items():
        if tensor.grad is None or float(tensor.grad.abs().max()) < 1e-12:
            continue
        got = published_gradient(model, pair.state, name)
        torch.testing.assert_close(
            got, tensor.grad, rtol=1e-6, atol=1e-8, msg=lambda text, name=name: f"{name}: {text}"
        )
        predictors += name.startswith("score_predictor")
    assert predictors == 10 * len(pair.model.locations)  # every predictor learns, all of it


def test_images_without_a_kept_token_stay_finite(fixed_noise: Callable[..., None]) -> None:
    pair = make_pair(reduction="dynamicvit", keep_rate=0.5, images=3, dtype=torch.float32)
    fixed_noise(lift=1e4)
    model = pair.model.train()
    logits = model(pair.images.float())
    (logits.square().sum() + model.auxiliary_loss).backward()
    assert torch.isfinite(logits).all()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    # Nothing is kept of the patches; what the cache recovered enters the later locations as kept, and is dropped there.
    torch.testing.assert_close(model.auxiliary_loss.item(), 2 * (0.5**2 + 0.25**2 + 0.125**2) / 3)


def test_a_token_that_was_dropped_changes_nothing_downstream(fixed_noise: Callable[..., None]) -> None:
    """Training sees what evaluation will: with every patch masked, CLS does not know the image."""
    pair = make_pair(reduction="dynamicvit", keep_rate=0.5, locations=(0,), clc=False, cla=False, images=2)
    fixed_noise(lift=1e4)
    model = pair.model.train()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.weight *= 0.1  # a CLS far below the largest score would drown in the 1e-6 / N
    first, second = model(pair.images[:1]), model(pair.images[1:])
    torch.testing.assert_close(first, second, rtol=0, atol=1e-4)  # 1e-6 / N of each dropped value remains


def test_evaluation_draws_nothing_and_adds_nothing() -> None:
    pair = make_pair(reduction="dynamicvit", keep_rate=0.5)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(pair.model(pair.images), pair.model(pair.images))
    assert torch.equal(torch.get_rng_state(), before)
    assert pair.model.auxiliary_loss == 0
    pair.model.train()
    pair.model(pair.images)
    assert pair.model.auxiliary_loss > 0
    pair.model.eval()(pair.images)
    assert pair.model.auxiliary_loss == 0


def test_training_decisions_follow_the_predicted_probabilities() -> None:
    """Over many passes each patch is kept at location 0 as often as the predictor says."""
    pair = make_pair(reduction="dynamicvit", keep_rate=0.5, locations=(0,), grid=2, clc=False, images=1)
    tokens = pair.reference.embed(pair.images[0])
    wanted = pair.reference.predictor(0, tokens[1:])[:, 0].exp()
    model = pair.model.train()
    kept = torch.zeros(4)
    for _ in range(8):
        _, trace = model.forward_trace(pair.images.expand(64, -1, -1, -1))
        kept += (trace.owner[0] >= 0).float().mean(dim=0) / 8
    torch.testing.assert_close(kept, wanted.float().detach(), rtol=0, atol=0.08)  # 512 draws: deviation below 0.023
