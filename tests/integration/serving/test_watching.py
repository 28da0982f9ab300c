"""What the operator sees of a running service: traces over both processes, and the page with its charts."""

import time

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.integration

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
SECRET = "a shopper who reads at night"


def waited_for(found, seconds=20):
    """What is found before the time is up."""
    deadline = time.monotonic() + seconds
    while not (what := found()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.2)
    return what


def test_a_trace_goes_on_from_the_caller_through_the_gateway_to_the_engine(home):
    key = home.client("acme").api_key
    answer = httpx.post(
        f"{home.url}/v1/copy",
        json={"title": "Oak lamp", "shopper": SECRET, "max_tokens": 5},
        headers={
            "Authorization": f"Bearer {key}",
            "traceparent": f"00-{TRACE}-{PARENT}-01",
            "x-request-id": "seen-in-the-trace",
        },
    )

    def whole():
        mine = [(of, span) for of, span in home.collector.spans() if span.trace_id.hex() == TRACE]
        return mine if {of for of, _ in mine} == {"handbill-gateway", "handbill-engine"} else None

    spans = waited_for(whole)
    (request,) = [span for of, span in spans if of == "handbill-gateway"]
    written = [span for of, span in spans if of == "handbill-engine"]
    assert request.name == "POST /v1/copy"
    assert request.parent_span_id.hex() == PARENT
    facts = {a.key: a.value.string_value or a.value.int_value for a in request.attributes}
    assert facts["http.response.status_code"] == answer.status_code
    assert (facts["tenant"], facts["request"]) == ("acme", "seen-in-the-trace")
    assert [event.name for event in request.events][::2] == ["admitted", "ended"]
    for span in written:
        assert span.parent_span_id == request.span_id
        assert (
            request.start_time_unix_nano
            < span.start_time_unix_nano
            < span.events[0].time_unix_nano
            < span.end_time_unix_nano
        )
    assert len(written) >= 1
    sent = b"".join(home.collector.bodies)
    for text in (SECRET, "Oak lamp", key, key[12:]):
        assert text.encode() not in sent


def test_the_page_shows_every_engine(two_engines):
    home = two_engines
    home.client("acme").completions.create(model="default", prompt="a", max_tokens=5)

    def both():
        text = httpx.get(f"{home.page}/metrics").text
        families = {family.name: family for family in text_string_to_metric_families(text)}
        tokens = families["handbill_engine_tokens"].samples
        return tokens if len(tokens) == 2 and sum(one.value for one in tokens) else None

    assert len({one.labels["engine"] for one in waited_for(both)}) == 2
    page = httpx.get(home.page)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{home.page}/else").status_code == 404
