"""The endpoint below a path of a proxy, which hands on requests with the path or without."""

import pytest
from fastapi.testclient import TestClient
from small_endpoint import make_app, photo

from clca.errors import ClcaError
from clca.serve import ServeSettings

TOKEN = "0123456789abcdef0123"


@pytest.mark.parametrize("before", ["", "/cultivars"], ids=["stripped", "kept"])
def test_every_address_is_there_with_the_path_and_without(before: str) -> None:
    with TestClient(make_app(root_path="/cultivars")) as client:
        for path in ("/v1/models", "/health", "/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json"):
            assert client.get(before + path).status_code == 200
        answer = client.post(f"{before}/v1/predict", content=photo(1), headers={"Content-Type": "image/png"})
        assert answer.status_code == 200
        assert client.get(f"{before}/cultivarsx").status_code == 404
        assert client.get(f"{before}/openapi.json").json()["servers"] == [{"url": "/cultivars"}]
        assert 'clca_requests_total{code="200",path="/v1/predict"} 1.0' in client.get(f"{before}/metrics").text


@pytest.mark.parametrize("before", ["", "/cultivars"], ids=["stripped", "kept"])
def test_the_token_guards_the_same_addresses(before: str) -> None:
    with TestClient(make_app(root_path="/cultivars", token=TOKEN)) as client:
        assert client.get(f"{before}/health").status_code == 200
        for path in ("/v1/models", "/docs", "/cultivars/health", "/health/", "/healthy"):
            told = client.get(before + path)
            assert told.status_code == (200 if before + path == "/cultivars/health" else 401), path


@pytest.mark.parametrize(
    "path",
    ["cultivars", "/cultivars/", "/", "/a//b", "/../a", "https://plants.example/a", "/a b", "/a?b", "/ä", "/a\n"],
)
def test_what_is_no_such_path_is_refused(path: str) -> None:
    with pytest.raises(ClcaError, match=r"root_path: .* is no path: write the path as /cultivars"):
        ServeSettings(root_path=path)


@pytest.mark.parametrize("path", ["/v1", "/v1/predict", "/health", "/docs", "/gradio_api"])
def test_a_path_at_which_the_server_has_addresses_is_refused(path: str) -> None:
    with pytest.raises(ClcaError, match="has addresses there; choose another path"):
        ServeSettings(root_path=path)
    assert ServeSettings(root_path=f"/leaves{path}").root_path
