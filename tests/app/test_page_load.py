"""Many pages and programs at once, each with a photograph and keep rate of its own: every answer is the model's."""

import random
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from page_client import PageClient
from small_page import CLASSES, draw, page_of

import clca

pytestmark = pytest.mark.slow

CLIENTS = 10
PATIENCE = 300.0
SHARES = [0.1, 0.25, 0.5, 0.75, 1.0]
_ROW = re.compile(r'<div class=name><span>(.*?)</span>.*?<i style="width:([\d.]+)%">', re.S)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)  # the page's model runs in this process too


@pytest.fixture(scope="module")
def steep(vines: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose answers change a lot with the photograph and the keep rate, as those of a tiny run do not."""
    model = clca.from_pretrained(vines)
    with torch.no_grad():
        for parameter in model.blocks.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    folder = tmp_path_factory.mktemp("models") / "steep"
    model.save_pretrained(folder)
    return folder


def alone(model: clca.TokenReducedViT, photo: Path, keep_rate: float) -> dict[str, float]:
    """What the model says by itself, in percent."""
    model.keep_rate = keep_rate
    (found,) = clca.predict(model, [photo], device="cpu", precision="no", top_k=len(CLASSES))
    return dict(zip(found.classes, (100 * p for p in found.probabilities), strict=True))


def shown(html: str) -> dict[str, float]:
    """What an answer shows: its bars have two decimals more than its figures."""
    return {unescape(name): float(width) for name, width in _ROW.findall(html)}


def test_pages_and_programs_at_once_get_the_answers_of_the_model_alone(steep: Path, tmp_path: Path) -> None:
    model, fresh = clca.from_pretrained(steep), random.Random(3)
    rates = [(fresh.choice(SHARES), fresh.choice(SHARES)) for _ in range(CLIENTS)]
    photos = [draw(tmp_path / f"{client}.png", client % 3, client) for client in range(CLIENTS)]
    expected = [[alone(model, photo, rate) for rate in pair] for photo, pair in zip(photos, rates, strict=True)]
    together = threading.Barrier(CLIENTS)

    def use(address: str, client: int) -> list[dict[str, float]]:
        """The answers of the page, of the endpoint while the page waits, and of the page's two sides."""
        page, content, (rate, other) = PageClient(address, PATIENCE), photos[client].read_bytes(), rates[client]
        together.wait(PATIENCE)
        file = page.upload("leaf.png", content)
        begun = page.begin("photo", "change", "steep", rate, file)
        answer = page.http.post(
            "/v1/predict", params={"keep_rate": other, "model": "steep"}, content=content,
            headers={"Content-Type": "image/png"},
        )  # fmt: skip
        assert answer.status_code == 200, answer.text
        (result,) = answer.json()["results"]
        told = dict(zip(result["classes"], (100 * p for p in result["probabilities"]), strict=True))
        found = [shown(page.outcome(begun)["answer"]), told]
        if client % 2:
            sides = page.ask("left-rate", "input", file, "steep", other, "steep-2", rate)
            found += [shown(sides["right-answer"]), shown(sides["left-answer"])]
        return found

    # Whose answer it is, not when it comes: on a slow machine the last in line waits longer than the limit.
    with page_of([steep, steep], answer_seconds=PATIENCE) as address, ThreadPoolExecutor(CLIENTS) as clients:
        found = list(clients.map(partial(use, address), range(CLIENTS)))
    for answers, alone_ in zip(found, expected, strict=True):
        for answer, right in zip(answers, alone_ * 2, strict=False):
            assert answer == pytest.approx(right, abs=0.0051)


def test_a_mixed_up_answer_would_be_noticed(steep: Path, tmp_path: Path) -> None:
    model = clca.from_pretrained(steep)
    photos = [draw(tmp_path / f"{k}.png", k % 3, 100 * k) for k in range(4)]
    answers = [[alone(model, photo, rate) for rate in SHARES] for photo in photos]
    for at_rates in answers:
        assert sum(one != pytest.approx(other, abs=0.02) for one, other in pairwise(at_rates)) == len(SHARES) - 1
    for one, other in pairwise(answers):
        assert one[0] != pytest.approx(other[0], abs=0.02)
