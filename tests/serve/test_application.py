"""What the endpoint answers, and what it refuses, request by request."""

import copy
import io
import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image
from small_endpoint import CLASSES, TOLERANCE, alone, by_class, make_app, photo, tiny_model
from starlette.applications import Starlette

import clca
from clca.data.transforms import preprocess_dict
from clca.errors import ClcaError
from clca.serve import ServeSettings, create_app

MODEL = tiny_model()


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    app = make_app(MODEL, files=8, file_bytes=200_000, request_bytes=1_000_000, pixels=100_000)
    with TestClient(app) as client:
        yield client


def send(client: TestClient, data: bytes, name: str = "leaf.png", **params: Any) -> Any:
    return client.post("/v1/predict", files={"images": (name, data)}, params=params)


def reason(answer: Any) -> tuple[int, str]:
    error = answer.json()["error"]
    assert error["status"] == answer.status_code
    assert error["message"]
    return answer.status_code, error["code"]


# -- answers ---------------------------------------------------------------------------------------------------------


def test_one_image_in_a_form_and_as_the_body_get_the_models_own_answer(client: TestClient) -> None:
    data = photo(1)
    in_form = send(client, data, top_k=5)
    as_body = client.post("/v1/predict?top_k=5", content=data, headers={"content-type": "image/png"})
    assert in_form.status_code == as_body.status_code == 200
    assert in_form.json()["model"] == "tiny"
    assert in_form.json()["keep_rate"] == 0.5
    assert in_form.headers["x-content-type-options"] == "nosniff"
    for answer in (in_form, as_body):
        (result,) = answer.json()["results"]
        assert result["probabilities"] == sorted(result["probabilities"], reverse=True)
        torch.testing.assert_close(by_class(result), alone(MODEL, data), atol=TOLERANCE, rtol=0)
    assert in_form.json()["results"][0]["name"] == "leaf.png"


def test_several_images_are_answered_in_order_and_a_bad_one_spoils_no_other(client: TestClient) -> None:
    sent = [photo(1), b"<svg xmlns='http://www.w3.org/2000/svg'/>", photo(2, kind="JPEG"), photo(3)[:300]]
    answer = client.post("/v1/predict?top_k=5", files=[("images", (f"{k}.png", d)) for k, d in enumerate(sent)])
    assert answer.status_code == 200
    results = answer.json()["results"]
    assert [result["name"] for result in results] == ["0.png", "1.png", "2.png", "3.png"]
    assert [result["error"] and result["error"]["status"] for result in results] == [None, 415, None, 422]
    for k in (0, 2):
        torch.testing.assert_close(by_class(results[k]), alone(MODEL, sent[k]), atol=TOLERANCE, rtol=0)


def test_top_k_is_at_most_all_classes(client: TestClient) -> None:
    assert len(send(client, photo(1), top_k=2).json()["results"][0]["classes"]) == 2
    assert len(send(client, photo(1), top_k=99).json()["results"][0]["classes"]) == len(CLASSES)
    assert reason(send(client, photo(1), top_k=0)) == (422, "invalid")


def test_a_request_chooses_its_keep_rate_and_the_next_has_the_models_own(client: TestClient) -> None:
    data = photo(4)
    chosen = send(client, data, top_k=5, keep_rate=0.25)
    assert chosen.json()["keep_rate"] == 0.25
    usual = send(client, data, top_k=5)
    for answer, rate in ((chosen, 0.25), (usual, 0.5)):
        torch.testing.assert_close(
            by_class(answer.json()["results"][0]), alone(MODEL, data, rate), atol=TOLERANCE, rtol=0
        )
    assert not torch.allclose(alone(MODEL, data, 0.25), alone(MODEL, data, 0.5), atol=10 * TOLERANCE)


def test_a_model_for_several_rates_answers_with_the_statistics_of_each() -> None:
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "num_heads": 2, "depth": 4}
    model = clca.create_model(
        "vit_tiny_patch16_224", num_classes=5, reduction="evit", keep_rates=(0.1, 0.5, 1.0), **tiny
    ).eval()
    for name, rows in model.rate_statistics.named_buffers():  # type: ignore[union-attr]
        rows.normal_() if name.endswith("mean") else rows.uniform_(0.5, 2)
    model.classes, model.preprocess = CLASSES, MODEL.preprocess
    served, data = copy.deepcopy(model), photo(4)
    with TestClient(create_app({"several": served}, ServeSettings(device="cpu", precision="no"))) as client:
        assert client.get("/v1/models").json()["models"][0]["keep_rate"] == 0.1
        for rate in (1.0, 0.5, 0.3, 0.1, None):
            answer = send(client, data, top_k=5, **({} if rate is None else {"keep_rate": rate})).json()
            found = by_class(answer["results"][0])
            torch.testing.assert_close(found, alone(model, data, rate or 0.1), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("rate", ["0", "-1", "1.5", "nan", "inf", "half"])
def test_an_impossible_keep_rate_is_refused(client: TestClient, rate: str) -> None:
    assert reason(send(client, photo(1), keep_rate=rate)) == (422, "invalid")


@pytest.mark.parametrize("name", ["top_k", "keep_rate"])
@pytest.mark.parametrize("text", ["1_0", "1_0e-1", "٣", " 5", "5 ", "0x10", "nan", "inf", "", "1,5", "9" * 5000])
def test_what_only_python_takes_for_a_number_is_refused(client: TestClient, name: str, text: str) -> None:
    assert reason(send(client, photo(1), **{name: text})) == (422, "invalid")


def test_several_models_are_told_apart_and_a_fixed_keep_rate_stays() -> None:
    models = {"first": MODEL, "fixed": tiny_model("patchmerger", seed=3), "dense": tiny_model("none", 1.0)}
    with TestClient(create_app(models, ServeSettings(device="cpu", precision="no"))) as client:
        data = photo(5)
        for name, model in models.items():
            answer = send(client, data, model=name, top_k=5).json()
            assert answer["model"] == name
            torch.testing.assert_close(by_class(answer["results"][0]), alone(model, data), atol=TOLERANCE, rtol=0)
        assert send(client, data).json()["model"] == "first"
        assert reason(send(client, data, model="../first")) == (404, "no_such_model")
        assert reason(send(client, data, model="fixed", keep_rate=0.3)) == (422, "keep_rate_is_fixed")
        assert reason(send(client, data, model="dense", keep_rate=0.3)) == (422, "keep_rate_is_fixed")
        assert send(client, data, model="dense", keep_rate=1).status_code == 200
        told = {model["name"]: model for model in client.get("/v1/models").json()["models"]}
        assert list(told) == list(models)
        assert told["first"]["keep_rate_range"] == [0, 1]
        assert told["fixed"]["keep_rate_range"] is told["dense"]["keep_rate_range"] is None
        for name, model in models.items():
            assert told[name]["classes"] == CLASSES
            assert told[name]["image_size"] == 32
            assert told[name]["gmacs"] == pytest.approx(clca.cost(model).gmacs)


def test_runs_are_called_by_their_folders_and_never_by_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "leaves", tmp_path / "b" / "leaves", tmp_path / "study-run" / "run"]
    for folder in folders:
        MODEL.save_pretrained(str(folder))
    app = create_app(folders, ServeSettings(device="cpu", precision="no"))
    assert list(app.state.service.models) == ["leaves", "leaves-2", "study-run"]
    with TestClient(app) as client:
        assert str(tmp_path) not in client.get("/v1/models").text
        assert send(client, photo(1), model="leaves-2").status_code == 200


def test_names_of_folders_that_are_no_utf_8_are_answered() -> None:
    model = tiny_model()
    model.classes = ["b\udcfcche", *CLASSES[1:]]
    app = create_app({"l\udce4rche": model}, ServeSettings(device="cpu"))
    with TestClient(app, base_url="http://localhost") as client:
        (told,) = client.get("/v1/models").json()["models"]
        assert (told["name"], told["classes"][0]) == (r"l\udce4rche", r"b\udcfcche")
        assert r"b\udcfcche" in send(client, photo(1)).json()["results"][0]["classes"]
        assert client.get("/metrics").status_code == 200


def test_no_model_or_one_without_classes_is_refused() -> None:
    with pytest.raises(ClcaError, match="no model to serve"):
        create_app([])
    bare = tiny_model()
    bare.classes = None
    with pytest.raises(ClcaError, match="classes"):
        create_app({"bare": bare}, ServeSettings(device="cpu"))


def test_a_model_whose_preprocessing_is_damaged_is_refused() -> None:
    damaged = tiny_model()
    damaged.preprocess = preprocess_dict(32) | {"img_size": "x"}
    with pytest.raises(ClcaError, match="image size 'x'"):
        create_app({"damaged": damaged}, ServeSettings(device="cpu"))


# -- hostile images --------------------------------------------------------------------------------------------------


def bomb(width: int = 30_000, height: int = 30_000) -> bytes:
    """A PNG of a few hundred bytes that says it holds 900 million pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def animated() -> bytes:
    file = io.BytesIO()
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


HOSTILE = {
    "a decompression bomb": (bomb(), 413, "too_many_pixels"),
    "a bomb beyond Pillow's own limit": (bomb(60_000, 60_000), 413, "too_many_pixels"),
    "pixels just over": (photo(1, (400, 300), "JPEG"), 413, "too_many_pixels"),
    "SVG called PNG": (b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"/>', 415, "not_an_image"),
    "HTML called PNG": (b"<!DOCTYPE html><script>alert(1)</script>", 415, "not_an_image"),
    "PDF": (b"%PDF-1.7 ...", 415, "not_an_image"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run", 415, "not_an_image"),
    "a program": (b"\x7fELF" + bytes(99), 415, "not_an_image"),
    "a zip": (b"PK\x03\x04" + bytes(99), 415, "not_an_image"),
    "zero bytes": (bytes(1000), 415, "not_an_image"),
    "a path": (b"/etc/passwd", 415, "not_an_image"),
    "cut off in its pixels": (photo(1)[:300], 422, "damaged"),
    "cut off in its header": (photo(1)[:14], 422, "damaged"),
    "a cut-off JPEG": (photo(1, kind="JPEG")[:200], 422, "damaged"),
    "pixels that are not there": (bomb(200, 200).replace(b"IDAT", b"IDAX"), 422, "damaged"),
    "a line of pixels": (bomb(90_000, 1), 422, "too_narrow"),
    "empty": (b"", 422, "no_image"),
    "too many bytes": (photo(1) + bytes(300_000), 413, "file_too_long"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_image_is_refused_by_what_it_is(client: TestClient, name: str) -> None:
    data, status, code = HOSTILE[name]
    answer = send(client, data)
    assert reason(answer) == (status, code)
    assert not any(path in answer.text for path in ("/tmp", "clca-", "/etc"))
    if code != "no_image":
        as_body = client.post("/v1/predict", content=data, headers={"content-type": "image/png"})
        assert reason(as_body) == (status, code)


def test_an_image_is_read_whatever_it_is_called(client: TestClient) -> None:
    for name in ("leaf.svg", "leaf.exe", "no ending", "x" * 1000 + ".png"):
        answer = send(client, photo(1), name)
        assert answer.status_code == 200
        assert len(answer.json()["results"][0]["name"]) <= 200
    assert send(client, animated()).status_code == 200


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..\\..\\boot.ini", "a\0b.png", "%2e%2e/x", "~"])
def test_a_path_for_a_name_is_a_name(
    client: TestClient, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    opened: list[str] = []
    real = os.open

    def watch(path: Any, *args: Any, **kwargs: Any) -> int:
        opened.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", watch)
    body = b'--b\r\nContent-Disposition: form-data; name=images; filename="%s"\r\n\r\n%s\r\n--b--\r\n'
    sent = body % (name.replace("\\", "\\\\").encode(), photo(1))
    answer = client.post("/v1/predict", content=sent, headers={"content-type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 200, answer.text
    assert all("clca-" in path for path in opened)  # the temporary file of our own naming
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_the_file_system_is_served(client: TestClient) -> None:
    for path in (
        "/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "/static/../pyproject.toml",
        "/v1/..",
    ):
        assert client.get(path).status_code == 404
    assert reason(client.get("/v1/predict")) == (405, "refused")


# -- hostile requests ------------------------------------------------------------------------------------------------


def test_ten_thousand_small_files_are_refused(client: TestClient) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name=images; filename="a.png"\r\n\r\nx\r\n'
    head = {"content-type": "multipart/form-data; boundary=b"}
    body = part * 10_000 + b"--b--\r\n"
    assert reason(client.post("/v1/predict", content=body, headers=head)) == (413, "too_many_files")
    assert reason(client.post("/v1/predict", content=part * 9 + b"--b--\r\n", headers=head)) == (413, "too_many_files")
    eight = client.post("/v1/predict", content=part * 8 + b"--b--\r\n", headers=head).json()["results"]
    assert [result["error"]["code"] for result in eight] == ["not_an_image"] * 8


@pytest.mark.parametrize("declared", [True, False])
def test_a_request_of_too_many_bytes_is_refused_declared_or_not(client: TestClient, declared: bool) -> None:
    part = b'--b\r\nContent-Disposition: form-data; name=images; filename="a.png"\r\n\r\n%s\r\n' % bytes(190_000)
    body = part * 7 + b"--b--\r\n"
    content = body if declared else iter([body[k : k + 50_000] for k in range(0, len(body), 50_000)])
    head = {"content-type": "multipart/form-data; boundary=b"}
    assert reason(client.post("/v1/predict", content=content, headers=head)) == (413, "request_too_long")


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("text/html", b"<html>", (415, "unknown_body")),
        ("application/json", b"{}", (415, "unknown_body")),
        ("application/x-www-form-urlencoded", photo(1), (415, "unknown_body")),
        ("multipart/form-data", b"--b--\r\n", (400, "broken_form")),
        ("multipart/form-data; boundary=b", b"no form at all", (400, "broken_form")),
        ("multipart/form-data; boundary=b", b"--b--\r\n", (422, "no_image")),
        ("multipart/form-data; boundary=" + "b" * 5000, b"--b--\r\n", (400, "broken_form")),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"X-Long: " + b"a" * 50_000, (400, "broken_form")),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name=images; filename="a.png"\r\n\r\n' + photo(1)[:100],
            (400, "broken_form"),
        ),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=top_k\r\n\r\n3\r\n--b--\r\n",
            (422, "not_a_file"),
        ),
    ],
)
def test_a_broken_body_is_refused(client: TestClient, kind: str, body: bytes, expected: tuple[int, str]) -> None:
    assert reason(client.post("/v1/predict", content=body, headers={"content-type": kind})) == expected


def test_nothing_is_held_after_all_that(client: TestClient) -> None:
    service = client.app.state.service  # type: ignore[attr-defined]
    assert (service.under_way, service.held_bytes) == (0, 0)


# -- token -----------------------------------------------------------------------------------------------------------


def test_the_token_opens_everything_and_nothing_but_health_is_open_without() -> None:
    token = "a-token-of-some-length"
    with TestClient(make_app(MODEL, token=token)) as client:
        right = {"Authorization": f"Bearer {token}"}
        paths = ("/v1/models", "/metrics", "/docs", "/openapi.json", "/nothing")
        for path in paths:
            refused = client.get(path)
            assert reason(refused) == (401, "no_token")
            # Chromium asks for a password only where Basic is the first challenge of the line.
            assert refused.headers["www-authenticate"] == 'Basic realm="clca", Bearer realm="clca"'
            assert client.get(path, headers=right).status_code == (404 if path == "/nothing" else 200)
        wrong = (f"Bearer {token}x", f"Bearer {token[:-1]}", "Bearer", "Bearer ü".encode("latin-1"), f"Digest {token}",
                 "Basic !!!", token)  # fmt: skip
        for shown in wrong:
            assert client.post("/v1/predict", content=photo(1), headers={"Authorization": shown}).status_code == 401
        assert client.post("/v1/predict", content=photo(1), headers=right).status_code == 200
        assert client.get("/v1/models", auth=("anyone", token)).status_code == 200  # as a browser shows it
        assert client.get("/v1/models", auth=(token, "")).status_code == 401
        assert client.get("/health").json() == {"live": True, "ready": True}
        assert client.get("/health/../metrics").status_code in (401, 404)


@pytest.mark.parametrize("token", ["short", "with blanks in between them", "ü" * 20])
def test_a_weak_token_is_refused(token: str) -> None:
    with pytest.raises(ClcaError, match="openssl rand"):
        ServeSettings(token=token)


@pytest.mark.parametrize(
    "name", ["max_batch", "queue", "files", "pixels", "answer_seconds", "decoders", "decode_seconds"]
)
def test_impossible_settings_are_refused(name: str) -> None:
    with pytest.raises(ClcaError, match=name):
        ServeSettings(**{name: 0})
    assert ServeSettings(wait_ms=0).wait_ms == 0


# -- what it tells of itself -----------------------------------------------------------------------------------------


def test_metrics_count_requests_images_and_batches() -> None:
    with TestClient(make_app(MODEL)) as client:
        send(client, photo(1)), send(client, b"<html>"), client.get("/one"), client.get("/two")
        text = client.get("/metrics").text
    lines = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(lines['clca_requests_total{code="200",path="/v1/predict"}']) == 1
    assert float(lines['clca_requests_total{code="415",path="/v1/predict"}']) == 1
    assert float(lines['clca_requests_total{code="404",path="other"}']) == 2
    assert float(lines['clca_images_total{model="tiny",outcome="answered"}']) == 1
    assert float(lines['clca_images_total{model="tiny",outcome="not_an_image"}']) == 1
    assert float(lines['clca_batch_images_sum{model="tiny"}']) == 1
    assert float(lines['clca_request_seconds_count{path="/v1/predict"}']) == 2
    assert float(lines["clca_images_under_way"]) == float(lines["clca_queue_images"]) == 0


def test_whoever_asks_with_head_gets_the_head_of_the_same_answer(client: TestClient) -> None:
    for path in ("/health", "/health/live", "/health/ready", "/v1/models", "/metrics", "/docs", "/openapi.json"):
        head, answer = client.head(path), client.get(path)
        assert (head.status_code, head.headers["content-type"]) == (200, answer.headers["content-type"])
    assert client.head("/nothing").status_code == 404
    assert not any("head" in methods for methods in client.get("/openapi.json").json()["paths"].values())


def test_openapi_describes_bodies_refusals_and_examples(client: TestClient) -> None:
    found = client.get("/openapi.json").json()
    predict = found["paths"]["/v1/predict"]["post"]
    assert {"multipart/form-data", "image/*"} <= set(predict["requestBody"]["content"])
    assert {"200", "400", "401", "404", "408", "413", "415", "421", "422", "429", "500", "503", "504"} == set(
        predict["responses"]
    )
    assert set(found["paths"]["/v1/models"]["get"]["responses"]) == {"200", "401", "421", "503"}
    assert set(found["paths"]["/metrics"]["get"]["responses"]["200"]["content"]) == {"text/plain"}
    assert set(found["paths"]["/health"]["get"]["responses"]) == {"200", "421", "503"}
    assert {parameter["name"] for parameter in predict["parameters"]} == {"top_k", "keep_rate", "model", "together"}
    assert "leaf.jpg" in json.dumps(found["components"]["schemas"]["ImageAnswer"])
    assert "curl" in predict["description"]


ROUTES = [
    ("/v1/predict", {"POST"}),
    ("/v1/models", {"GET", "HEAD"}),
    ("/health", {"GET", "HEAD"}),
    ("/health/ready", {"GET", "HEAD"}),
    ("/health/live", {"GET", "HEAD"}),
    ("/metrics", {"GET", "HEAD"}),
    ("/docs", {"GET", "HEAD"}),
    ("/openapi.json", {"GET", "HEAD"}),
]


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "with a page"])
def routed(request: pytest.FixtureRequest) -> Iterator[TestClient]:
    app = make_app(MODEL)
    if request.param:
        app.mount("/", Starlette(), name="page")  # it knows no path, as the page knows none of the endpoint's
    with TestClient(app) as client:
        yield client


@pytest.mark.parametrize(("path", "allowed"), ROUTES)
@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "BREW"])
def test_a_method_that_a_path_has_not_is_answered_with_those_that_it_has(
    routed: TestClient, path: str, allowed: set[str], method: str
) -> None:
    answer = routed.request(method, path)
    if method in allowed:
        assert answer.status_code in (200, 415, 422)
    else:
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == allowed
        if method != "HEAD":
            assert reason(answer) == (405, "refused")


def test_an_unknown_path_is_not_found(routed: TestClient) -> None:
    for path in ("/v1/nothing", "/v1/predict/more", "/v2/predict"):
        assert routed.get(path).status_code == routed.post(path).status_code == 404


def test_the_cost_of_ats_is_that_of_the_evaluation_or_says_that_it_is_of_noise(tmp_path: Path) -> None:
    """How many tokens it keeps depends on the image, and noise is none that anyone photographs."""
    model = tiny_model("ats")
    model.save_pretrained(tmp_path / "run")
    content = json.loads((tmp_path / "run" / "config.json").read_text())
    content["train"] = {"model": content["model"], "data": {"root": "photos"}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(content))

    def told(folder: Path) -> dict[str, Any]:
        with TestClient(create_app([folder], ServeSettings(device="cpu"))) as client:
            return client.get("/v1/models").json()["models"][0]

    assert told(tmp_path / "run")["gmacs_of"].startswith("noise")
    stored = {"split": "test", "data": "photos", "keep_rate": model.keep_rate, "images": 4, "top1": 0.5, "top5": 1.0,
              "macro": 0.5, "gmacs": 1.25, "computed_gmacs": 1.0, "images_per_second": 9.0}  # fmt: skip
    (tmp_path / "run" / "evaluation" / "test").mkdir(parents=True)
    (tmp_path / "run" / "evaluation" / "test" / "evaluation.json").write_text(json.dumps(stored))
    found = told(tmp_path / "run")
    assert (found["gmacs"], found["computed_gmacs"]) == (1.25, 1.0)
    assert found["gmacs_of"] == "mean of up to 16 test images"


def test_the_cost_of_others_is_that_of_every_image(client: TestClient) -> None:
    assert client.get("/v1/models").json()["models"][0]["gmacs_of"] == "every image"
