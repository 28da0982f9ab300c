"""Every route with every kind of key that must not open it. A route that is not in the table fails."""

import asyncio

import httpx
import pytest
from fastapi.routing import iter_route_contexts

from handbill.serving.keys import SCOPES, ApiKey

OPEN = {
    ("GET", "/healthz"),
    ("GET", "/readyz"),
    ("GET", "/openapi.json"),
    ("HEAD", "/openapi.json"),
}
EVENT = {"id": "evt-1", "copy_id": "{copy}", "kind": "click", "shopper": "c7d2"}
VARIANTS = [{"name": "plain"}, {"name": "warm", "settings": {"tone": "warm"}}]
PROMPT = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2}
# Route: the scope it needs, and a body that works for who may; names in braces are acme's things.
ROUTES = {
    ("POST", "/v1/chat/completions"): ("generate", PROMPT),
    ("POST", "/v1/completions"): ("generate", {"prompt": "Once", "max_tokens": 2}),
    ("POST", "/v1/copy"): ("generate", {"title": "Lamp", "max_tokens": 2, "seed": 1}),
    ("POST", "/v1/check"): ("generate", {"text": "A lamp."}),
    ("GET", "/v1/copy/batch"): ("generate", None),
    ("POST", "/v1/copy/batch"): ("generate", {"rows": [{"title": "Lamp"}], "more": True}),
    ("GET", "/v1/copy/batch/{batch}"): ("generate", None),
    ("DELETE", "/v1/copy/batch/{batch}"): ("generate", None),
    ("POST", "/v1/copy/batch/{batch}/rows"): (
        "generate",
        {"offset": 1, "rows": [{"title": "Blanket"}]},
    ),
    ("POST", "/v1/copy/batch/{batch}/start"): ("generate", None),
    ("GET", "/v1/copy/batch/{batch}/results"): ("generate", None),
    ("GET", "/v1/models"): ("generate", None),
    ("GET", "/v1/models/{name}"): ("generate", None),
    ("GET", "/v1/usage"): ("generate", None),
    ("GET", "/v1/claims"): ("manage", None),
    ("POST", "/v1/claims"): ("manage", {"kind": "brand", "value": "Lumora"}),
    ("DELETE", "/v1/claims/{rule}"): ("manage", None),
    ("GET", "/v1/reviews"): ("manage", None),
    ("POST", "/v1/reviews/{review}"): ("manage", {"decision": "reject"}),
    ("POST", "/v1/events"): ("feedback", {"events": [EVENT]}),
    ("GET", "/v1/events"): ("manage", None),
    ("DELETE", "/v1/events"): ("manage", {"shopper": "c7d2"}),
    ("GET", "/v1/experiments"): ("manage", None),
    ("POST", "/v1/experiments"): ("manage", {"name": "tone", "variants": VARIANTS}),
    ("GET", "/v1/experiments/{experiment}"): ("manage", None),
    ("POST", "/v1/experiments/{experiment}/stop"): ("manage", None),
}
# Things that are not there, of the same form as acme's.
NOBODYS = {
    "name": "nobody",
    "rule": "7777",
    "review": "7777",
    "experiment": "exp-0",
    "copy": "hb-0",
    "batch": "batch-0",
}


def filled(value, things):
    if isinstance(value, dict):
        return {name: filled(one, things) for name, one in value.items()}
    if isinstance(value, list):
        return [filled(one, things) for one in value]
    return value.format(**things) if isinstance(value, str) and "{" in value else value


@pytest.fixture
def matrix(make_service):
    """A service, and ``ask(route, key, things)``; every request comes from another address."""
    service = make_service(requests_per_minute=1e6, burst=10_000)
    count = iter(range(1, 10_000))

    def ask(route, key, things=NOBODYS):
        method, path = route
        number = next(count)
        transport = httpx.ASGITransport(
            service.app,
            raise_app_exceptions=False,
            client=(f"10.1.{number >> 8}.{number & 255}", 1),
        )
        body = filled(ROUTES[route][1], things)

        async def one():
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
                return await client.request(
                    method, path.format(**things), json=body, headers=headers
                )

        return asyncio.run(one())

    service.ask = ask
    return service


def test_every_route_is_in_the_table_with_the_scope_it_declares(service):
    found = {}
    for route in iter_route_contexts(service.app.routes):
        path = route.path.replace(":path}", "}")
        found |= dict.fromkeys(((method, path) for method in route.methods), route)
    assert found.keys() == ROUTES.keys() | OPEN
    assert all(path.startswith("/v1/") for _, path in ROUTES)
    assert not any(path.startswith("/v1") for _, path in OPEN)
    document = service.app.openapi()
    for (method, path), (scope, _) in ROUTES.items():
        assert document["paths"][path][method.lower()]["security"] == [{"key": [scope]}], path


def bad_keys(service):
    tenants, acme = service.tenants, service.keys["acme"]
    revoked = tenants.new_key("bolt")
    tenants.revoke(revoked.id)
    return {
        "no key": None,
        "empty": "",
        "malformed": "hb_' OR 1=1 --",
        "wrong checksum": acme[:-1] + ("0" if acme[-1] != "0" else "1"),
        "unknown id": ApiKey.new().reveal(),
        "wrong secret": ApiKey(ApiKey.parse(acme).id, ApiKey.new().secret).reveal(),
        "revoked": revoked.reveal(),
        "expired": tenants.new_key("bolt", days=0).reveal(),
    }


def test_without_a_good_key_every_route_gives_the_same_401(matrix):
    said = set()
    for name, key in bad_keys(matrix).items():
        for route in ROUTES:
            answer = matrix.ask(route, key)
            assert answer.status_code == 401, (name, route)
            assert answer.json()["error"]["code"] == "invalid_api_key", (name, route)
            assert answer.headers["WWW-Authenticate"] == "Bearer"
            said.add(answer.content)
    assert len(said) == 1
    assert matrix.engine.asked == []
    assert matrix.usage() == matrix.usage("bolt") == []


def test_a_key_without_the_scope_gets_403_and_nothing_happens(matrix):
    scopes = {scope: matrix.tenants.new_key("acme", scopes=[scope]).reveal() for scope in SCOPES}
    for route, (needed, _) in ROUTES.items():
        for scope, key in scopes.items():
            if scope != needed:
                answer = matrix.ask(route, key)
                assert answer.status_code == 403, (scope, route)
                assert answer.json()["error"]["code"] == "insufficient_scope"
                assert repr(needed) in answer.json()["error"]["message"]
    assert matrix.engine.asked == []
    assert matrix.tenants.house.list("acme") == []
    assert matrix.gateway.feedback.experiments.list("acme") == []


def test_a_key_with_the_scope_and_no_other_opens_every_route(matrix):
    keys = {scope: matrix.tenants.new_key("acme", scopes=[scope]).reveal() for scope in SCOPES}
    things = acmes_things(matrix)
    # What deletes acme's things comes last.
    for route, (needed, _) in sorted(ROUTES.items(), key=lambda row: row[0][0] == "DELETE"):
        answer = matrix.ask(route, keys[needed], things)
        assert answer.status_code in {200, 201, 204}, (route, answer.text)


def acmes_things(matrix):
    """One of everything of acme's that has a name."""
    key = matrix.keys["acme"]
    made = {
        "rule": matrix.ask(("POST", "/v1/claims"), key).json()["id"],
        "experiment": matrix.ask(("POST", "/v1/experiments"), key).json()["id"],
        "batch": matrix.ask(("POST", "/v1/copy/batch"), key).json()["id"],
        "copy": matrix.ask(("POST", "/v1/copy"), key).json()["copies"][0]["copy_id"],
        "review": matrix.tenants.reviews.keep("acme", "best", request="r", artifact="a", title="t"),
        "name": "acme",
    }
    return {name: str(value) for name, value in made.items()}


def test_what_is_another_tenants_is_not_there(matrix):
    things = acmes_things(matrix)
    before = everything(matrix)
    named = [r for r in ROUTES if "{" in r[1] or "{copy}" in str(ROUTES[r][1])]
    assert len(named) == 11
    for route in named:
        answers = [matrix.ask(route, matrix.keys["bolt"], t) for t in (things, NOBODYS)]
        assert [answer.status_code for answer in answers] == [404, 404], route
        said = [answer.text for answer in answers]
        for name, nobodys in NOBODYS.items():  # an answer may repeat what was asked for
            said[0] = said[0].replace(f" {things[name]}:", f" {nobodys}:")
        assert said[0] == said[1], route
    for route in (r for r in ROUTES if r[0] == "GET" and r not in named):
        text = matrix.ask(route, matrix.keys["bolt"]).text
        assert all(
            f'"{things[name]}"' not in text for name in ("experiment", "copy", "name", "batch")
        )
        nothing = '"data":[]' in text or '"days":[]' in text
        assert nothing or route[1] == "/v1/models", route
    assert everything(matrix) == before


def everything(matrix):
    """What acme has, as acme sees it."""
    key = matrix.keys["acme"]
    routes = [
        ("GET", path) for path in ("/v1/claims", "/v1/reviews", "/v1/experiments", "/v1/copy/batch")
    ]
    return [matrix.ask(route, key).json() for route in routes]
