"""The API keeps its own OpenAPI document, whatever it is sent: schemathesis against the real app."""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import schemathesis.openapi
    from schemathesis.config import SchemathesisConfig
    from schemathesis.engine import events, from_schema

SEED = 20250301
# Some rules are about several fields at once, which a schema cannot say (a prompt and its answer fit
# the context, say): there, what the schema allows may still be a 400.
FIELDS_TOGETHER = {"expected-statuses": ["2xx", "400", "404", "422"]}
BY_SEVERAL_FIELDS = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/copy",
    "/v1/copy/batch",
    "/v1/claims",
    "/v1/reviews/{review}",
    "/v1/events",
    "/v1/experiments",
]


@pytest.fixture
def findings(make_service, monkeypatch):
    """Run all phases of schemathesis on an app with a tiny random model."""
    monkeypatch.setattr("handbill.serving.limits._STRANGERS_PER_MINUTE", 1e9)
    service = make_service(requests_per_minute=1e6, burst=10_000, max_tokens=4, copy_attempts=1)
    config = SchemathesisConfig.from_dict(
        {
            "seed": SEED,
            "headers": {"Authorization": f"Bearer {service.keys['acme']}"},
            "generation": {"max-examples": 5, "database": "none", "deterministic": True},
            "workers": 1,
            "checks": {"negative_data_rejection": {"expected-statuses": ["4xx"]}},
            "operations": [
                {"include-path": path, "checks": {"positive_data_acceptance": FIELDS_TOGETHER}}
                for path in BY_SEVERAL_FIELDS
            ],
        }
    )
    schema = schemathesis.openapi.from_asgi("/openapi.json", service.app, config=config)
    found, cases = {}, 0
    for event in from_schema(schema).execute():
        if isinstance(event, events.NonFatalError | events.FatalError):
            raise getattr(event, "value", None) or event.exception
        if isinstance(event, events.ScenarioFinished):
            cases += len(event.recorder.cases)
            for case, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        key = (event.recorder.label, check.name)
                        found.setdefault(
                            key, (check.failure_info.failure, event.recorder.cases[case].value)
                        )
    return found, cases


def test_schemathesis_finds_nothing(findings):
    found, cases = findings
    assert cases > 300
    said = [
        f"{where}: {failure}\n{case.as_curl_command()}" for where, (failure, case) in found.items()
    ]
    assert not said, "\n\n".join(said)
