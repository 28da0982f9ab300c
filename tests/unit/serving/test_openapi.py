"""The OpenAPI document says of everything what it is; its examples work."""

from handbill.serving.openapi_texts import FIELDS, TAGS


def test_every_operation_and_field_is_explained(service):
    document = service.app.openapi()
    schemas = document["components"]["schemas"]
    missing = [
        (name, field)
        for name, schema in schemas.items()
        for field, facts in schema.get("properties", {}).items()
        if not {"description", "$ref"} & facts.keys()
    ]
    assert missing == []
    assert FIELDS.keys() <= schemas.keys()
    assert all(FIELDS[name].keys() <= schemas[name]["properties"].keys() for name in FIELDS)
    names = [o["operationId"] for ops in document["paths"].values() for o in ops.values()]
    assert len(set(names)) == len(names)
    used = {tag for ops in document["paths"].values() for o in ops.values() for tag in o["tags"]}
    assert used == TAGS.keys()


def test_every_private_operation_lists_what_it_refuses(service):
    for path, operations in service.app.openapi()["paths"].items():
        for operation in operations.values():
            refusals = {"400", "401", "403", "413", "429", "500", "503"}
            if path.startswith("/v1/"):
                assert refusals <= operation["responses"].keys(), path
            assert operation["description"].endswith((".", "it.")), path


def test_the_examples_of_requests_are_taken(service):
    for path, operations in service.app.openapi()["paths"].items():
        for method, operation in operations.items():
            content = (
                operation.get("requestBody", {}).get("content", {}).get("application/json", {})
            )
            if not content:
                continue
            answer = service.send(
                method.upper(), path.replace("{review}", "1"), json=content["example"]
            )
            # The examples' copy and review are not there; their form is right.
            assert answer.status_code in {200, 201, 404}, (path, answer.text)


def test_limits_of_the_service_are_in_it(make_service):
    document = make_service(max_choices=3).app.openapi()
    n = document["components"]["schemas"]["CopyBody"]["properties"]["n"]
    assert n["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 3}


def test_a_405_names_the_methods_of_the_path(service):
    answer = service.send("PUT", "/v1/events", json={})
    assert answer.status_code == 405
    assert answer.headers["Allow"] == "DELETE, GET, POST"
