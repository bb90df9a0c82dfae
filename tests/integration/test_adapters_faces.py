"""Adapters through both faces and the commands: who may load what, and every way to name one."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import grpc
import grpc.aio
import openai
import pytest

from appliance.api.proto import inference_pb2 as pb
from appliance.api.proto import model_pb2, model_pb2_grpc
from appliance.cli.main import main
from appliance.config import Limits
from tests.integration.daemons import RunningDaemon
from tests.integration.grpc_calls import (
    chat_input,
    expect_failure,
    inference,
    on_channel,
    text_input,
)
from tests.integration.rest_calls import Answer, call, text_body
from tests.integration.stack import DEMO, Stack
from tools.gguf_writer import Lora, write_lora

TEXT = "One two three"
LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lay out a shelf, a file beside it, and a link in it that leads out."""
    place = tmp_path_factory.mktemp("adapters")
    (place / "shelf").mkdir()
    for seed, name in enumerate(("shelf/ada.gguf", "bob.gguf")):
        write_lora(place / name, DEMO, Lora(strength=1.0), seed=seed)
    (place / "shelf" / "link.gguf").symlink_to(place / "bob.gguf")
    return place


@pytest.fixture(scope="module")
def shelved(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """Run an appliance with a shelf."""
    running = Stack(
        tmp_path_factory.mktemp("shelved"),
        adapter_dir=str(place / "shelf"),
        limits=Limits(adapters=2),
    )
    running.start()
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def empty(shelved: Stack) -> Iterator[None]:
    """Leave no adapter behind."""
    yield
    for adapter in listed(shelved):
        unloaded(shelved, adapter.name)


def models(channel: grpc.aio.Channel) -> model_pb2_grpc.ModelServiceStub:
    return model_pb2_grpc.ModelServiceStub(channel)


def loading(
    name: str, path: object, **fields: object
) -> Callable[[grpc.aio.Channel], Awaitable[model_pb2.LoadAdapterResponse]]:
    request = model_pb2.LoadAdapterRequest(name=name, path=str(path), **fields)  # type: ignore[arg-type]

    async def work(channel: grpc.aio.Channel) -> model_pb2.LoadAdapterResponse:
        return await models(channel).LoadAdapter(request)

    return work


def unloaded(stack: Stack, name: str) -> None:
    async def work(channel: grpc.aio.Channel) -> model_pb2.UnloadAdapterResponse:
        return await models(channel).UnloadAdapter(model_pb2.UnloadAdapterRequest(name=name))

    on_channel(stack.grpc_target, work)


def listed(stack: Stack) -> list[model_pb2.Adapter]:
    async def work(channel: grpc.aio.Channel) -> model_pb2.ListAdaptersResponse:
        return await models(channel).ListAdapters(model_pb2.ListAdaptersRequest())

    return list(on_channel(stack.grpc_target, work).adapters)


def generated(stack: Stack, **fields: object) -> pb.GenerateResponse:
    async def work(channel: grpc.aio.Channel) -> pb.GenerateResponse:
        request = pb.GenerateRequest(input=text_input(TEXT, **fields))
        return await inference(channel).Generate(request)

    return on_channel(stack.grpc_target, work)


def completed(stack: Stack, **fields: object) -> Answer:
    return call(stack.rest_address, "POST", "/v1/completions", text_body(TEXT, **fields))


def test_an_operator_loads_any_file_and_every_way_to_name_it_gives_the_same_answer(
    shelved: Stack, place: Path
) -> None:
    plain = generated(shelved)
    loaded = on_channel(shelved.grpc_target, loading("bob", place / "bob.gguf")).adapter
    assert (loaded.name, loaded.model, loaded.rank, loaded.scale) == ("bob", "demo@2", 4, 1.0)
    assert loaded.state == model_pb2.ADAPTER_STATE_READY
    assert loaded.origin == "local"
    assert loaded.size_bytes == (place / "bob.gguf").stat().st_size
    assert list(listed(shelved)) == [loaded]
    assert shelved.audited("load_adapter")[-1] == ("local", "demo@2:bob", "ok")
    answers = [
        generated(shelved, **fields)
        for fields in (
            {"adapter": "bob"},
            {"model": "demo:bob"},
            {"model": "demo@2:bob"},
            {"model": "bob"},
            {"model": "bob", "adapter": "bob"},
        )
    ]
    (text,) = {answer.choices[0].text for answer in answers}
    assert text != plain.choices[0].text
    assert {answer.version for answer in answers} == {"demo@2:bob"}
    for fields in ({"adapter": "bob"}, {"model": "demo:bob"}, {"model": "bob"}):
        answer = completed(shelved, **fields)
        assert answer.json["choices"][0]["text"] == text
        assert answer.json["model"] == "demo@2:bob"
    client = openai.OpenAI(base_url=f"{shelved.rest_url}/v1", api_key="none")
    said = client.chat.completions.create(
        model="bob", messages=[{"role": "user", "content": "Hello!"}], max_tokens=4
    )
    assert said.model == "demo@2:bob"
    assert generated(shelved).choices[0].text == plain.choices[0].text


def test_the_models_list_shows_adapters_as_vllm_does(shelved: Stack, place: Path) -> None:
    on_channel(shelved.grpc_target, loading("bob", place / "bob.gguf", scale=0.5))
    rows = call(shelved.rest_address, "GET", "/v1/models").json["data"]
    assert [(row["id"], row.get("parent")) for row in rows] == [("demo", None), ("bob", "demo")]
    for name in ("bob", "demo:bob"):
        shown = call(shelved.rest_address, "GET", f"/v1/models/{name}").json
        assert (shown["id"], shown["parent"], shown["scale"]) == (name, "demo", 0.5)
    assert call(shelved.rest_address, "GET", "/v1/models/demo:none").status == 404


def test_over_rest_what_lies_in_the_shelf_is_loaded_and_unloaded(
    shelved: Stack, place: Path
) -> None:
    for path in ("ada.gguf", str(place / "shelf" / "ada.gguf")):
        body = {"lora_name": "ada", "lora_path": path, "base_model_name": "demo"}
        answer = call(shelved.rest_address, "POST", LOAD, body)
        assert (answer.status, answer.json["state"]) == (200, "ready")
    assert completed(shelved, model="ada").status == 200
    answer = call(shelved.rest_address, "POST", UNLOAD, {"lora_name": "ada"})
    assert (answer.status, answer.json["deleted"]) == (200, True)
    row = ("loopback", "demo@2:ada", "ok")
    assert shelved.audited("load_shelved_adapter")[-1] == row
    assert shelved.audited("unload_shelved_adapter")[-1] == row
    refused = completed(shelved, adapter="ada")
    assert (refused.status, refused.error["code"]) == (404, "adapter_not_loaded")
    assert "'ada' of 'demo@2' is not loaded; loaded are: none" in refused.error["message"]


@pytest.mark.parametrize("path", ["{}/bob.gguf", "../bob.gguf", "link.gguf", "/etc/hostname"])
def test_over_tcp_nothing_else_is_opened(shelved: Stack, place: Path, path: str) -> None:
    path = path.format(place)
    answer = call(shelved.rest_address, "POST", LOAD, {"lora_name": "x", "lora_path": path})
    assert (answer.status, answer.error["code"]) == (403, "PERMISSION_DENIED")
    failure = expect_failure(shelved.grpc_tcp, loading("x", path))
    assert failure.code is grpc.StatusCode.PERMISSION_DENIED
    assert path not in failure.message
    assert listed(shelved) == []
    expected = ("loopback", "demo@2:x", "PERMISSION_DENIED")
    assert shelved.audited("load_adapter")[-2:] == [expected, expected]


def test_over_tcp_an_adapter_of_the_operators_stays(shelved: Stack, place: Path) -> None:
    on_channel(shelved.grpc_target, loading("bob", place / "bob.gguf"))
    answer = call(shelved.rest_address, "POST", UNLOAD, {"lora_name": "bob"})
    assert (answer.status, answer.error["code"]) == (403, "PERMISSION_DENIED")
    assert [adapter.name for adapter in listed(shelved)] == ["bob"]
    answer = call(shelved.rest_address, "POST", UNLOAD, {"lora_name": "none"})
    assert (answer.status, answer.error["code"]) == (404, "adapter_not_loaded")


def test_without_a_shelf_only_the_operator_loads(stack: Stack, place: Path) -> None:
    body = {"lora_name": "ada", "lora_path": str(place / "shelf" / "ada.gguf")}
    answer = call(stack.rest_address, "POST", LOAD, body)
    assert (answer.status, answer.error["code"]) == (403, "PERMISSION_DENIED")
    failure = expect_failure(stack.grpc_target, loading("ada", "ada.gguf"))
    assert failure.violations == (("path", "must be absolute"),)


def test_what_can_not_be_loaded_has_a_typed_error_on_both_faces(
    shelved: Stack, place: Path
) -> None:
    failure = expect_failure(shelved.grpc_target, loading("x", DEMO))
    assert failure.code is grpc.StatusCode.FAILED_PRECONDITION
    assert failure.reason == "ADAPTER_UNLOADABLE"
    assert "its general.type is" in failure.message
    answer = call(shelved.rest_address, "POST", LOAD, {"lora_name": "x", "lora_path": "gone"})
    assert (answer.status, answer.error["code"]) == (400, "ADAPTER_UNLOADABLE")
    for fields, field in (
        ({"name": "no spaces"}, "name"),
        ({"name": "demo"}, "name"),
        ({"path": ""}, "path"),
        ({"scale": 17.0}, "scale"),
        ({"scale": math.nan}, "scale"),
        ({"model": "other"}, ""),
    ):
        given = {"name": "x", "path": place / "bob.gguf"} | fields
        failure = expect_failure(shelved.grpc_target, loading(**given))  # type: ignore[arg-type]
        expected = ((field,),) if field else ()
        assert tuple((name,) for name, _ in failure.violations) == expected, fields
    for more, param in (
        ({"lora_nam": "x"}, "lora_nam"),
        ({"load_inplace": True}, "load_inplace"),
        ({"model": "demo", "base_model_name": "x"}, "base_model_name"),
    ):
        body = {"lora_name": "x", "lora_path": "ada.gguf"} | more
        answer = call(shelved.rest_address, "POST", LOAD, body)
        assert (answer.status, answer.error["param"]) == (400, param)


def test_one_adapter_too_many_is_refused(shelved: Stack, place: Path) -> None:
    for name in ("one", "two"):
        on_channel(shelved.grpc_target, loading(name, place / "bob.gguf"))
    failure = expect_failure(shelved.grpc_target, loading("three", place / "bob.gguf"))
    assert failure.code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert failure.reason == "TOO_MANY_ADAPTERS"
    body = {"lora_name": "three", "lora_path": "ada.gguf"}
    answer = call(shelved.rest_address, "POST", LOAD, body)
    assert (answer.status, answer.error["code"]) == (409, "TOO_MANY_ADAPTERS")
    page = call(shelved.rest_address, "GET", "/metrics").body.decode()
    row = 'model="demo@2",verb="load_adapter",outcome="TOO_MANY_ADAPTERS"} 1'
    assert f"appliance_adapter_changes_total{{{row}" in page


def test_a_request_for_an_adapter_that_is_not_there_names_those_that_are(
    shelved: Stack, place: Path
) -> None:
    on_channel(shelved.grpc_target, loading("bob", place / "bob.gguf"))

    async def work(channel: grpc.aio.Channel) -> pb.ChatResponse:
        return await inference(channel).Chat(
            pb.ChatRequest(input=chat_input("Hello!", adapter="ada"))
        )

    failure = expect_failure(shelved.grpc_target, work)
    assert failure.code is grpc.StatusCode.NOT_FOUND
    assert failure.reason == "ADAPTER_NOT_LOADED"
    assert failure.metadata["loaded"] == "bob"
    assert failure.resource == ("adapter", "ada")
    answer = completed(shelved, model="demo:bob", adapter="ada")
    assert (answer.status, answer.error["param"]) == (400, "adapter")


def test_adapters_of_the_configuration_come_with_the_model_and_commands_change_them(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "appliance.toml"
    config.write_text(
        f"""
        [server]
        state_dir = "{tmp_path}/state"
        runtime_dir = "{tmp_path}/run"
        [rest]
        tcp = ""
        [[models]]
        path = "{DEMO}"
        name = "demo"
        [[models.adapters]]
        name = "ada"
        path = "{place}/shelf/ada.gguf"
        scale = 0.5
        """
    )
    with RunningDaemon(tmp_path, "--config", config) as daemon:
        daemon.ready()

        def run(*arguments: object, code: int = 0) -> str:
            capsys.readouterr()
            assert main([*map(str, arguments), "--address", daemon.address]) == code
            out = capsys.readouterr()
            return out.out if code == 0 else out.err

        (shown,) = json.loads(run("adapter", "list", "--json"))["adapters"]
        assert (shown["name"], shown["scale"], shown["state"]) == ("ada", 0.5, "ready")
        assert "bob is ready: rank 4" in run("adapter", "load", "bob", place / "bob.gguf")
        texts = {
            run("generate", "--temperature", 0, "--max-tokens", 16, *named, TEXT)
            for named in ((), ("--adapter", "ada"), ("--model", "bob"))
        }
        assert len(texts) == 3
        assert "ADAPTER" in run("adapter", "list")
        assert run("adapter", "unload", "ada") == "ada is unloaded\n"
        assert "ADAPTER_NOT_LOADED" in run("generate", "--adapter", "ada", TEXT, code=64)
        assert "ADAPTER_UNLOADABLE" in run("adapter", "load", "x", DEMO, code=78)
