"""Several models in one server, and bundles that change under it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from app.catalog.catalog import Catalog
from app.errors import NotReadyError
from app.settings import Settings
from model.architecture.gcnn import GCNN
from model.core.tokenizer import Tokenizer
from model.data.corpus import Corpus
from model.export.bundle_writer import export
from tests.api.conftest import Server, eventually, serving, starting

TEXT = "Alice was beginning to get very tired"


@pytest.fixture(scope="module")
def other_folder(
    tiny_model: GCNN,
    tokenizer: Tokenizer,
    calibration: Corpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A bundle of other weights with files of the same names and sizes."""
    torch.manual_seed(5)
    model = GCNN(tiny_model.config, tokenizer.start_id)
    with torch.no_grad():
        model.embedding.weight.mul_(10)
    folder = tmp_path_factory.mktemp("other") / "other"
    export(model.eval(), tokenizer, folder, "other", "# tiny\n", calibration)
    return folder


@pytest.fixture
def folders(tiny_folder: Path, other_folder: Path, tmp_path: Path) -> Path:
    """A folder with two bundles, `a` and `b`, and things that are none."""
    folder = tmp_path / "bundles"
    shutil.copytree(tiny_folder, folder / "a")
    shutil.copytree(other_folder, folder / "b")
    shutil.copytree(tiny_folder, folder / ".c-partial")
    (folder / "d").mkdir()
    (folder / "README.md").write_text("ours\n")
    return folder


def of(folders: Path, **changed: Any) -> Settings:
    """Settings for a folder of bundles."""
    fields = {"device": "cpu", "threads": 1, "precision": "float32"} | changed
    return Settings(bundles=folders, **fields)


def look(server: Server, *, at_once: bool = True) -> None:
    """What SIGHUP does, and with `at_once` false what the interval does."""
    server.app.state.catalog.refresh(at_once=at_once)


def scored(server: Server, model: str | None = None) -> tuple[str, str, float]:
    """The model's name, its fingerprint, and what it says of a text."""
    answer = server.ask("/v1/score", input=TEXT, model=model)
    return answer["model"], answer["system_fingerprint"], answer["data"][0]["logprob_sum"]


def replace(folder: Path, source: Path) -> None:
    """Puts a bundle in the place of another, as an export does."""
    partial = folder.parent / f".{folder.name}-new"
    shutil.copytree(source, partial)
    shutil.rmtree(folder)
    partial.rename(folder)


def outcomes(server: Server, outcome: str) -> float:
    return server.metric(f'convlm_reloads_total{{outcome="{outcome}"}}')


def test_every_endpoint_answers_with_the_model_that_is_named(folders: Path) -> None:
    with serving(of(folders)) as server:
        (a, a_print, a_sum), (b, b_print, b_sum) = scored(server, "a"), scored(server, "b")
        assert (a, b) == ("a", "b")
        assert a_print != b_print
        assert a_sum != b_sum
        assert scored(server) == (a, a_print, a_sum)
        utterances = [{"hypotheses": [{"text": TEXT}]}]
        for path, body in (
            ("/v1/next", {"input": TEXT}),
            ("/v1/completions", {"prompt": TEXT, "max_tokens": 2}),
            ("/v1/rescore", {"utterances": utterances}),
        ):
            for name, fingerprint in (("a", a_print), ("b", b_print)):
                answer = server.ask(path, **body, model=name)
                assert (answer["model"], answer["system_fingerprint"]) == (name, fingerprint)
        lines = b"".join(
            json.dumps({"input": TEXT, "model": name}).encode() + b"\n" for name in "abax"
        )
        answers = server.client.post("/v1/score/stream", content=lines).text.splitlines()
        prints = [json.loads(line).get("system_fingerprint") for line in answers[:4]]
        assert prints == [a_print, b_print, a_print, None]
        assert json.loads(answers[3])["error"]["code"] == "model_not_found"
        for path, field in (("/v1/tokenize", "prompt"), ("/v1/score", "input")):
            error = server.post(path, **{field: TEXT}, model="x")
            assert error.status_code == 404
            assert error.json()["error"]["message"] == "model: there is no model 'x'; there is a, b"
        assert server.client.get("/v1/tokenizer_info", params={"model": "b"}).status_code == 200
        assert server.client.get("/v1/tokenizer_info", params={"model": "x"}).status_code == 404


def test_the_bundle_that_is_named_by_itself_is_the_default(
    folders: Path, other_folder: Path
) -> None:
    with serving(of(folders, bundle=folders / "b")) as server:
        assert [m["id"] for m in server.client.get("/v1/models").json()["data"]] == ["b", "a"]
        assert scored(server)[0] == "b"
    with serving(of(folders, bundle=other_folder)) as server:
        listed = [m["id"] for m in server.client.get("/v1/models").json()["data"]]
        assert listed == ["other", "a", "b"]
        assert scored(server)[1:] == scored(server, "b")[1:]


def test_a_lazy_server_loads_a_model_when_it_is_needed(folders: Path) -> None:
    with serving(of(folders, loading="lazy")) as server:
        assert server.metric("convlm_models") == 1
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["a", "b"]
        with ThreadPoolExecutor(8) as pool:
            names = set(pool.map(lambda _: scored(server, "b")[0], range(8)))
        assert names == {"b"}
        assert server.metric("convlm_models") == 2
        assert outcomes(server, "added") == 1
        assert server.client.get("/v1/models").json()["data"] == listed


def test_a_lazy_server_says_of_a_corrupt_bundle_that_it_cannot_be_loaded(
    folders: Path, other_folder: Path
) -> None:
    weights = folders / "b" / "weights.bin"
    weights.write_bytes(weights.read_bytes()[:-1])
    with serving(of(folders, loading="lazy")) as server:
        for _ in range(2):
            refused = server.post("/v1/score", input=TEXT, model="b")
            assert refused.status_code == 503
            assert "'b' cannot be loaded" in refused.json()["error"]["message"]
        lines = [{"input": TEXT, "model": name} for name in ("a", "b", "a")]
        lines.append({"input": " ".join([TEXT] * 200), "model": "b", "top_logprobs": 20})
        body = "\n".join(json.dumps(line) for line in lines)
        answers = server.client.post("/v1/score/stream", content=body)
        found = [json.loads(line) for line in answers.text.splitlines()]
        assert ["error" in line for line in found] == [False, True, False, True, False]
        assert found[-1]["errors"] == 2  # the summary
        assert outcomes(server, "failed") == 1  # tried again when it has changed
        assert scored(server)[0] == "a"
        assert server.client.get("/readyz").status_code == 200
        replace(folders / "b", other_folder)
        look(server)
        assert scored(server, "b")[0] == "b"


def test_an_eager_server_does_not_start_with_a_corrupt_bundle(folders: Path) -> None:
    (folders / "b" / "golden.json").unlink()
    with starting(of(folders)) as failed:
        failed.wait_until_failed()
        assert "golden.json is missing" in str(failed.failures[0])
        assert str(folders / "b") in str(failed.failures[0])
        assert failed.client.get("/readyz").status_code == 503


def test_a_folder_without_bundles_is_no_catalog(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nothing"):
        with starting(of(folder)) as failed:
            failed.wait_until_failed()
            assert str(folder) in str(failed.failures[0])


@contextmanager
def traffic(server: Server, clients: int) -> Iterator[list[tuple[str, float]]]:
    """Clients who score, complete and stream all the time; what they were told."""
    told: list[tuple[str, float]] = []
    failures: list[BaseException] = []
    enough = threading.Event()

    def client(number: int) -> None:
        with httpx.Client(base_url=server.url, timeout=60, trust_env=False) as http:
            while not enough.is_set():
                body: dict[str, Any] = {"model": "a"}
                if number % 3 == 0:
                    answer = http.post("/v1/score", json={**body, "input": TEXT})
                    answer.raise_for_status()
                    found = answer.json()
                    value = found["data"][0]["logprob_sum"]
                elif number % 3 == 1:
                    fields = {"prompt": TEXT, "max_tokens": 20, "temperature": 0, "logprobs": 0}
                    answer = http.post("/v1/completions", json={**body, **fields})
                    answer.raise_for_status()
                    found = answer.json()
                    value = sum(found["choices"][0]["logprobs"]["token_logprobs"])
                else:
                    line = json.dumps({**body, "input": TEXT}).encode() + b"\n"
                    answer = http.post("/v1/score/stream", content=line * 20)
                    answer.raise_for_status()
                    *lines, summary = [json.loads(raw) for raw in answer.text.splitlines()]
                    assert summary == {
                        "object": "summary",
                        "lines": 20,
                        "errors": 0,
                        "tokens": summary["tokens"],
                    }
                    told.extend(
                        (f"s {x['system_fingerprint']}", x["data"][0]["logprob_sum"]) for x in lines
                    )
                    continue
                told.append((f"{'sc'[number % 3]} {found['system_fingerprint']}", value))

    def run(number: int) -> None:
        try:
            client(number)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield told
    finally:
        enough.set()
        for thread in threads:
            thread.join()
    assert not failures, failures


@pytest.mark.parametrize("way", ["replaced", "written over"])
def test_no_request_fails_or_mixes_models_while_bundles_are_exchanged(
    folders: Path, tiny_folder: Path, other_folder: Path, way: str
) -> None:
    others = set(threading.enumerate())
    with serving(of(folders)) as server:
        prints = [scored(server, name)[1] for name in "ab"]
        gone = []
        with traffic(server, 6) as told:
            for count in range(6):
                before = server.app.state.catalog.get("a")
                gone.append(weakref.ref(before))
                del before
                source = (other_folder, tiny_folder)[count % 2]
                if way == "replaced":
                    replace(folders / "a", source)
                else:
                    shutil.copytree(source, folders / "a", dirs_exist_ok=True)
                look(server)
                assert scored(server, "a")[1] == prints[(count + 1) % 2]
                heard = len(told)
                eventually(lambda heard=heard: len(told) > heard + 6, "traffic")  # type: ignore[misc]
        assert outcomes(server, "replaced") == 6
        assert outcomes(server, "failed") == 0
        values: dict[str, set[float]] = {}
        for kind, value in told:
            values.setdefault(kind, set()).add(round(value, 4))
        assert set(values) == {f"{kind} {fingerprint}" for kind in "sc" for fingerprint in prints}
        assert all(len(found) == 1 for found in values.values()), values
        gc.collect()
        eventually(lambda: server.metric("convlm_models") == 2, "the end of what was replaced")
        assert not any(model() for model in gone)
        own = [t for t in threading.enumerate() if t not in others]
        assert len([t for t in own if t.name.startswith("engine")]) == 2
        server.assert_alive()


def test_a_stream_ends_on_the_model_that_it_began_with(folders: Path, other_folder: Path) -> None:
    body = {"prompt": TEXT, "max_tokens": 2000, "stream": True, "ignore_eos": True, "seed": 1}
    with serving(of(folders)) as server:
        first = scored(server, "a")[1]
        with server.client.stream("POST", "/v1/completions", json={**body, "model": "a"}) as answer:
            lines = (line for line in answer.iter_lines() if line)
            begun = [next(lines)]
            replace(folders / "a", other_folder)
            look(server)
            assert server.metric("convlm_models") == 3
            second = httpx.post(
                f"{server.url}/v1/score", json={"input": TEXT, "model": "a"}, trust_env=False
            ).json()["system_fingerprint"]
            assert second == scored(server, "b")[1] != first
            *chunks, done = [*begun, *lines]
        assert done == "data: [DONE]"
        parsed = [json.loads(chunk.removeprefix("data: ")) for chunk in chunks]
        assert {chunk["system_fingerprint"] for chunk in parsed} == {first}
        assert parsed[-1]["choices"][0]["finish_reason"] == "length"
        eventually(lambda: server.metric("convlm_models") == 2, "the end of what was replaced")


@pytest.mark.parametrize("wrong", ["weights.bin", "golden.json", "checksums.json"])
def test_a_corrupt_bundle_leaves_the_old_one_and_is_tried_again_when_it_changes(
    folders: Path, other_folder: Path, wrong: str, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(of(folders)) as server:
        before = scored(server, "a")
        replace(folders / "a", other_folder)
        right = (folders / "a" / wrong).read_bytes()
        (folders / "a" / wrong).write_bytes(right[: len(right) // 2])
        for _ in range(3):
            look(server, at_once=False)
        assert scored(server, "a") == before
        assert outcomes(server, "failed") == 1
        assert f"corrupt bundle {folders / 'a'}" in caplog.text
        assert server.client.get("/readyz").status_code == 200
        (folders / "a" / wrong).write_bytes(right)
        for _ in range(2):
            look(server, at_once=False)
        assert scored(server, "a")[1:] == scored(server, "b")[1:]


def test_a_bundle_with_right_checksums_that_scores_its_golden_texts_wrongly_is_refused(
    folders: Path, other_folder: Path, tiny_folder: Path
) -> None:
    with serving(of(folders)) as server:
        before = scored(server, "a")
        replace(folders / "a", other_folder)
        sums = json.loads((tiny_folder / "checksums.json").read_text())
        shutil.copy(tiny_folder / "golden.json", folders / "a" / "golden.json")
        own = json.loads((folders / "a" / "checksums.json").read_text())
        own["golden.json"] = sums["golden.json"]
        (folders / "a" / "checksums.json").write_text(json.dumps(own))
        look(server)
        assert outcomes(server, "failed") == 1
        assert scored(server, "a") == before
        assert server.metric("convlm_models") == 2


def test_bundles_are_added_and_removed_once_they_are_seen_twice(
    folders: Path, tiny_folder: Path
) -> None:
    with serving(of(folders)) as server:
        shutil.copytree(tiny_folder, folders / "d", dirs_exist_ok=True)
        shutil.rmtree(folders / "b")
        look(server, at_once=False)
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["a", "b"]
        assert scored(server, "b")[0] == "b"
        look(server, at_once=False)
        listed = server.client.get("/v1/models").json()["data"]
        assert [model["id"] for model in listed] == ["a", "d"]
        assert scored(server, "d")[0] == "d"
        assert server.post("/v1/score", input=TEXT, model="b").status_code == 404
        eventually(lambda: server.metric("convlm_models") == 2, "the end of what was removed")
        shutil.rmtree(folders)  # such as a volume that is not there
        for _ in range(2):
            look(server, at_once=False)
        assert scored(server, "a")[0] == "a"


def test_a_single_bundle_is_looked_at_too(
    tiny_folder: Path, other_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(tiny_folder, folder)
    fields: dict[str, Any] = {"device": "cpu", "threads": 1, "precision": "float32"}
    with serving(Settings(bundle=folder, reload_seconds=0.05, **fields)) as server:
        before = scored(server)
        shutil.copytree(other_folder, folder, dirs_exist_ok=True)
        eventually(lambda: scored(server)[1] != before[1], "the other bundle")
        assert scored(server)[0] == before[0] == "tiny"  # a name is kept
        assert scored(server)[2] != before[2]


def test_hangup_has_bundles_looked_at(folders: Path, tiny_folder: Path) -> None:
    environment = {
        **os.environ,
        "CONVLM_BUNDLES": str(folders),
        "CONVLM_LOADING": "lazy",
        "CONVLM_THREADS": "1",
    }
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stderr is not None
            lines = iter(process.stderr.readline, "")
            url = next(line for line in lines if "running on" in line).split(" on ")[1].split()[0]
            with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
                eventually(lambda: client.get("/readyz").status_code == 200, "a loaded model")
                shutil.copytree(tiny_folder, folders / "e")
                process.send_signal(signal.SIGHUP)
                eventually(lambda: client.get("/v1/models/e").status_code == 200, "the new model")
                answer = client.post("/v1/score", json={"input": TEXT, "model": "e"})
                assert answer.json()["model"] == "e"
        finally:
            process.terminate()
            process.communicate()
    assert process.returncode in (0, -signal.SIGTERM)


def test_a_catalog_that_is_closed_loads_nothing(folders: Path) -> None:
    from app.metrics import Metrics

    catalog = Catalog(of(folders, loading="lazy"), Metrics())
    catalog.load()
    held = catalog.get("a")
    catalog.close()
    assert not held.engine.running
    catalog.refresh(at_once=True)
    with pytest.raises(NotReadyError):
        asyncio.run(catalog.loaded("b"))
