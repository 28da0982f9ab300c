"""Who may ask for what, how often and how much: keys, names, rates and sizes."""

import asyncio
import logging

import pytest

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/copy")


def test_the_names_a_tenant_may_use(service):
    names = ["default", "handbill", "acme", "acme@1", service.digests["acme"]]
    for name in names:
        assert (
            service.post(
                "/v1/chat/completions", service.bodies["/v1/chat/completions"] | {"model": name}
            ).status_code
            == 200
        )
    listed = service.send("GET", "/v1/models").json()
    assert {model["id"] for model in listed["data"]} == set(names)
    assert service.send("GET", "/v1/models/acme@1").json()["id"] == "acme@1"


@pytest.mark.parametrize("path", PATHS)
def test_foreign_and_unknown_models_are_the_same_404(service, path):
    names = ["bolt", "bolt@2", "acme@2", "nobody", service.digests["bolt"], service.digests[""]]
    answers = [service.post(path, service.bodies[path] | {"model": name}) for name in names]
    answers.append(service.send("GET", "/v1/models/bolt"))
    answers.append(service.send("GET", "/v1/models/nobody"))
    assert {answer.status_code for answer in answers} == {404}
    assert len({answer.content for answer in answers}) == 1
    assert answers[0].json()["error"]["code"] == "model_not_found"
    assert service.engine.asked == []


@pytest.mark.parametrize("path", [*PATHS, "/v1/models", "/v1/anything"])
def test_without_a_valid_key_everything_is_401(service, path):
    key = service.keys["acme"]
    wrong = key[:12] + ("A" * 43) + key[55:]
    tried = [
        {},
        {"Authorization": f"Bearer {wrong}"},
        {"Authorization": f"Basic {key}"},
        {"Authorization": "Bearer"},
    ]
    answers = [service.post(path, {}, tenant=None, headers=headers) for headers in tried]
    service.tenants.revoke(key.split("_")[1])
    answers.append(service.post(path, {}))
    assert {answer.status_code for answer in answers} == {401}
    assert {answer.json()["error"]["code"] for answer in answers} == {"invalid_api_key"}
    assert len({answer.content for answer in answers}) == 1


def test_guessing_keys_is_slowed_down_and_valid_keys_are_not(service):
    answers = [service.send("GET", "/v1/models", tenant=None) for _ in range(20)]
    assert [answer.status_code for answer in answers] == [401] * 10 + [429] * 10
    assert int(answers[-1].headers["Retry-After"]) > 1
    assert service.send("GET", "/v1/models").status_code == 200


def test_a_body_that_is_too_large_is_not_read(make_service):
    service = make_service(max_body_bytes=1000)
    taken = []

    async def long_body():
        for _ in range(100):
            taken.append(1)
            yield b"x" * 100

    declared = service.send("POST", "/v1/copy", content=b"x" * 1001)
    streamed = service.send("POST", "/v1/copy", content=long_body())
    for answer in (declared, streamed):
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_a_tenant_over_its_rate_gets_429_and_others_do_not(make_service):
    service = make_service(requests_per_minute=1, burst=8)
    assert service.post("/v1/copy", service.bodies["/v1/copy"] | {"n": 8}).status_code == 200
    refused = service.post("/v1/copy")
    assert refused.status_code == 429
    assert 50 <= int(refused.headers["Retry-After"]) <= 60
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert service.post("/v1/copy", tenant="bolt").status_code == 200


def test_a_tenant_has_so_many_requests_at_once(make_service):
    service = make_service(concurrent=2)

    async def main():
        async with service.client() as client:
            return await asyncio.gather(
                *(
                    client.post("/v1/copy", json=service.bodies["/v1/copy"] | {"max_tokens": 60})
                    for _ in range(4)
                )
            )

    statuses = sorted(answer.status_code for answer in asyncio.run(main()))
    assert statuses == [200, 200, 429, 429]
    assert service.post("/v1/copy").status_code == 200


def test_no_key_and_no_text_of_a_request_is_logged(service, caplog):
    with caplog.at_level(logging.DEBUG):
        for path in PATHS:
            service.post(path)
        service.post("/v1/copy", {"title": "reads at night", "scenario": "x"})
    ours = [r for r in caplog.records if r.name.startswith("handbill")]
    said = " ".join(str(vars(record)) for record in ours)
    assert "request_ended" in said
    for secret in (service.keys["acme"], "Oak desk lamp", "reads at night", "Hello"):
        assert secret not in said
