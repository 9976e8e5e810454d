"""Health, the model list, metrics, and the schema."""

from __future__ import annotations

import threading
from importlib import metadata
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.catalog.catalog import Catalog
from app.settings import Settings
from app.wire.models import ModelList
from tests.api.conftest import Server, eventually, serving, settings_for, starting
from tests.api.http.test_errors import error_of


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/health"])
def test_a_server_that_runs_says_so(server: Server, path: str) -> None:
    response = server.client.get(path)
    assert response.status_code == 200
    assert response.json() == {"status": "ok"}
    asked = server.client.head(path)
    assert (asked.status_code, asked.content) == (200, b"")


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_host_that_pings_learns_that_the_server_can_answer(server: Server, method: str) -> None:
    response = server.client.request(method, "/ping")
    assert (response.status_code, response.json()) == (200, {"status": "ok"})


def test_a_method_that_a_path_lacks_is_told_those_that_it_has(server: Server) -> None:
    response = server.client.delete("/ping")
    error_of(response, 405)
    assert {"GET", "POST"} <= set(response.headers["allow"].split(", "))


def test_the_version_is_that_of_the_package(server: Server) -> None:
    assert server.client.get("/version").json() == {"version": metadata.version("convlm")}


def test_a_server_that_is_loading_lives_but_is_not_ready(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = threading.Event()
    load = Catalog.load

    def slow(self: Catalog) -> None:
        go_on.wait()
        load(self)

    monkeypatch.setattr(Catalog, "load", slow)
    with starting(settings_for(tiny_folder)) as loading:
        try:
            assert loading.client.get("/livez").status_code == 200
            assert loading.client.get("/version").status_code == 200
            assert loading.client.head("/readyz").status_code == 503
            assert loading.client.get("/metrics").status_code == 200
            assert loading.client.get("/v1/models").json()["data"] == []
            for method, path in (
                ("GET", "/readyz"),
                ("GET", "/health"),
                ("GET", "/ping"),
                ("POST", "/ping"),
                ("POST", "/v1/score"),
                ("POST", "/v1/next"),
                ("POST", "/v1/completions"),
            ):
                response = loading.client.request(method, path, content=b'{"input": "a"}')
                assert response.status_code == 503
                assert response.headers["retry-after"] == "1"
                error = response.json()["error"]
                assert error["code"] == "not_ready"
                assert error["type"] == "server_error"
        finally:
            go_on.set()
        loading.wait_until_ready()
        loading.assert_alive()


def test_a_server_whose_bundle_is_missing_lives_and_is_never_ready(tmp_path: Path) -> None:
    with starting(settings_for(tmp_path / "nothing")) as failed:
        failed.wait_until_failed()
        assert failed.client.get("/livez").status_code == 200
        assert failed.client.get("/readyz").status_code == 503


def test_models_are_listed_with_what_clients_read(server: Server) -> None:
    listed = server.client.get("/v1/models").json()
    (model,) = listed["data"]
    assert listed["object"] == "list"
    assert model["id"] == model["root"] == "tiny"
    assert model["object"] == "model"
    assert model["max_model_len"] == Settings.model_fields["max_request_tokens"].default
    assert isinstance(model["created"], int)
    assert server.client.get("/v1/models/tiny").json() == model
    ModelList.model_validate(listed)


def test_metrics_count_rows_and_end_with_nothing_waiting(server: Server) -> None:
    server.assert_alive()
    name = 'convlm_rows_total{kind="score"}'
    before = server.metric(name)
    count = server.ask("/v1/score", input="Alice was beginning")["data"][0]["token_count"]
    assert server.metric(name) == before + count
    assert server.metric("convlm_queue_tokens") == 0


def test_the_schema_names_every_body_with_examples_that_are_right(server: Server) -> None:
    schema = server.client.get("/openapi.json").json()
    for path in (
        "/v1/score",
        "/v1/rescore",
        "/v1/next",
        "/v1/completions",
        "/v1/tokenize",
        "/v1/detokenize",
    ):
        content = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]
        body = resolved(schema, content["schema"])
        assert body["properties"]
        for example in body["examples"]:
            response = server.client.post(path, json={**example, "model": "tiny"})
            assert response.status_code == 200, response.text
        assert "200" in schema["paths"][path]["post"]["responses"]
    for reference in references(schema):
        resolved(schema, {"$ref": reference})
    assert server.client.get("/docs").status_code == 200


def references(part: Any) -> list[str]:
    """Every $ref of a schema."""
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [found for value in part.values() for found in references(value)]
    if isinstance(part, list):
        return [found for value in part for found in references(value)]
    return []


def resolved(schema: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """What a $ref names."""
    found: dict[str, Any] = schema
    for name in part["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def test_a_server_that_stops_lets_go_of_its_engine(tiny_folder: Path) -> None:
    with serving(settings_for(tiny_folder)) as running:
        engine = running.model.engine
        url = running.url
        running.assert_alive()
    threads = [thread for loop in engine.loops for thread in loop._threads]
    assert threads
    assert not any(thread.is_alive() for thread in threads)
    with pytest.raises(httpx.TransportError):
        httpx.get(f"{url}/livez", trust_env=False)


def test_an_engine_that_has_ended_is_told_of(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(request: object, sequences: object) -> None:
        raise RuntimeError("a fault")

    with serving(settings_for(tiny_folder)) as server:
        (loop,) = server.model.engine.loops
        monkeypatch.setattr(loop.scheduler, "add", broken)
        error = error_of(server.post("/v1/score", input="a"), 503)
        assert error["message"] == "the engine has stopped: RuntimeError: a fault"
        assert error_of(server.client.get("/readyz"), 503)["message"] == error["message"]
        assert server.client.get("/readyz").status_code == 503
        assert server.client.get("/livez").status_code == 200
        eventually(lambda: bool(server.failures), "a failure")
        assert [str(failure) for failure in server.failures] == ["an engine has stopped"]
