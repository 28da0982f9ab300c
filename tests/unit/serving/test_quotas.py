"""What a tenant may use: counted once for all gateways, over restarts, and never too little."""

import asyncio
import contextlib
import json
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from handbill.errors import InputError, MissingError
from handbill.serving.cli import tenants_app
from handbill.serving.config import ServingConfig
from handbill.serving.errors import BadRequestError, RateLimitError
from handbill.serving.quota_repository import QuotaRepository
from handbill.serving.quotas import LEASE_S, Quota, Quotas, Use
from handbill.serving.tenants import open_tenants

NOON = datetime(2025, 1, 31, 12, tzinfo=UTC).timestamp()
HOUR = 3600.0


class Clock:
    now = NOON

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def gateways(tmp_path, clock):
    """Make gateways' quotas on one database."""
    config = ServingConfig(registry=tmp_path, state=tmp_path / "serving")
    tenants = open_tenants(config)
    for tenant in ("acme", "bolt"):
        tenants.add(tenant)
    tenants.close()
    opened = []

    def make(choices=1, **limits):
        how = {"burst": 1000, "choices": choices, "clock": clock}
        quotas = Quotas(QuotaRepository(config.url), Quota(**limits), **how)
        opened.append(quotas)
        return quotas

    yield make
    for quotas in opened:
        quotas.close()


def refused(quotas, tenant="acme", answers=1, **how):
    with pytest.raises(RateLimitError) as caught:
        quotas.admit(tenant, answers, **how)
    return caught.value


def used(quotas, name, tenant="acme"):
    return next(row["used"] for row in quotas.show(tenant) if row["quota"] == name)


def test_two_gateways_and_a_restart_share_one_count(gateways, clock):
    first, second = (gateways(tokens_per_day=100) for _ in range(2))
    first.release(first.admit("acme", 1, tokens=60), used=50)
    second.release(second.admit("acme", 1, tokens=50), used=50)
    for quotas in (first, second, gateways(tokens_per_day=100)):
        error = refused(quotas, tokens=1)
        assert (error.code, error.facts) == (
            "quota_exceeded",
            {"quota": "tokens_per_day", "limit": 100},
        )
        assert error.retry_after_s == 12 * HOUR
    second.admit("bolt", 1, tokens=100)
    clock.now += 12 * HOUR
    first.admit("acme", 1, tokens=100)


def test_a_month_ends_with_its_last_day(gateways, clock):
    quotas = gateways(tokens_per_month=100)
    quotas.admit("acme", 1, tokens=100)
    assert refused(quotas, tokens=1).retry_after_s == 12 * HOUR
    clock.now += 12 * HOUR  # the first of February
    quotas.admit("acme", 1, tokens=100)
    assert refused(quotas, tokens=1).retry_after_s == 28 * 24 * HOUR


def test_what_was_reserved_and_not_used_comes_back(gateways):
    quotas = gateways(tokens_per_day=100, tokens_per_minute=100, tokens_per_month=100)
    for _ in range(10):
        quotas.release(quotas.admit("acme", 1, tokens=80), used=2)
    assert [used(quotas, f"tokens_per_{span}") for span in ("minute", "day", "month")] == [20] * 3


def test_a_reservation_of_a_gateway_that_died_stays_counted(gateways, clock):
    gateways(tokens_per_day=100).admit("acme", 1, tokens=80)
    clock.now += LEASE_S + 1
    assert refused(gateways(tokens_per_day=100), tokens=30).code == "quota_exceeded"


def test_rates_fill_again_as_they_say(gateways, clock):
    for limits, how in (
        ({"tokens_per_minute": 60}, {"tokens": 60}),
        ({"requests_per_minute": 60}, {"answers": 60}),
    ):
        quotas = gateways(**limits)
        tenant = "acme" if "tokens" in how else "bolt"
        quotas.release(quotas.admit(tenant, how.get("answers", 1), tokens=how.get("tokens", 0)))
        wait_s = refused(quotas, tenant, **dict.fromkeys(how, 30)).retry_after_s
        assert wait_s == pytest.approx(30)
        clock.now += wait_s - 0.1
        refused(quotas, tenant, **dict.fromkeys(how, 30))
        clock.now += 0.2
        quotas.admit(
            tenant, how and (30 if "answers" in how else 1), tokens=how.get("tokens", 0) / 2
        )


def test_a_slow_tenant_may_still_ask_for_what_one_request_may(gateways, clock):
    quotas = gateways(requests_per_minute=2, choices=4)
    quotas.release(quotas.admit("acme", 4))
    assert refused(quotas, answers=4).retry_after_s == pytest.approx(120)
    clock.now += 121
    quotas.admit("acme", 4)


def test_so_many_run_at_once_over_all_gateways_and_the_dead_do_not_count(gateways, clock):
    first, second = (gateways(concurrent=2) for _ in range(2))
    grants = [first.admit("acme", 1), second.admit("acme", 1)]
    assert refused(second).facts == {"quota": "concurrent", "limit": 2}
    second.admit("bolt", 1)
    second.release(grants[1])
    second.admit("acme", 1)
    clock.now += LEASE_S - 1
    second._repository.renew(second._gateway, now=clock.now, expires_at=clock.now + LEASE_S)
    refused(second)
    clock.now += 2  # the first gateway has not been heard of
    second.admit("acme", 1)
    refused(second)


def test_a_background_request_counts_for_day_and_month_only(gateways):
    quotas = gateways(requests_per_minute=1, concurrent=1, tokens_per_minute=10, tokens_per_day=90)
    for _ in range(3):
        quotas.admit("acme", 8, tokens=30, background=True)
    assert refused(quotas, tokens=30, background=True).facts["quota"] == "tokens_per_day"
    assert used(quotas, "concurrent") == used(quotas, "requests_per_minute") == 0


def test_what_could_never_be_let_in_is_said_to_be_so(gateways):
    for name in ("tokens_per_minute", "tokens_per_day", "tokens_per_month"):
        with pytest.raises(BadRequestError, match="your quota is 10 tokens a"):
            gateways(**{name: 10}).admit("acme", 1, tokens=11)


def test_a_tenants_own_limits_hold_at_once_and_zero_gives_them_back(gateways):
    quotas = gateways(concurrent=1)
    other = gateways(concurrent=1)
    other.set("acme", concurrent=2, tokens_per_day=7)
    quotas.admit("acme", 1)
    quotas.admit("acme", 1)
    refused(quotas)
    other.set("acme", concurrent=0)
    rows = {row["quota"]: row for row in quotas.show("acme")}
    assert rows["concurrent"] == {"quota": "concurrent", "limit": 1, "used": 2, "own": False}
    assert rows["tokens_per_day"]["own"]
    with pytest.raises(MissingError):
        quotas.set("nobody", concurrent=1)
    with pytest.raises(InputError, match="concurrent=-1"):
        quotas.set("acme", concurrent=-1)


def test_many_at_once_never_get_more_than_there_is(gateways):
    quotas = [gateways(tokens_per_day=100) for _ in range(2)]
    got = []

    def ask(number):
        for _ in range(10):
            with contextlib.suppress(RateLimitError):
                got.append(quotas[number % 2].admit("acme", 1, tokens=7))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 100 // 7


@given(st.lists(st.tuples(st.floats(-10, 200), st.integers(0, 60)), max_size=30))
def test_in_no_minute_there_is_more_than_twice_the_limit(steps):
    """A full allowance and what fills in meanwhile; a clock that goes back gives nothing."""
    quota, use, now, taken = Quota(tokens_per_minute=60), Use(at=NOON), NOON, []
    for passed_s, tokens in steps:
        now += passed_s
        use = use.by(now, quota)
        if use.tokens + tokens <= 60:
            use = Use(
                **{**{n: getattr(use, n) for n in Use.__slots__}, "tokens": use.tokens + tokens}
            )
            taken.append((use.at, tokens))
    for at, _ in taken:
        assert sum(tokens for when, tokens in taken if at <= when < at + 60) <= 120


def test_the_api_reserves_settles_and_says_which_limit(make_service):
    service = make_service(tokens_per_day=1000)
    body = service.bodies["/v1/completions"]
    usage = service.post("/v1/completions", body).json()["usage"]
    service.usage()
    report = service.send("GET", "/v1/usage").json()
    day = next(row for row in report["quotas"] if row["quota"] == "tokens_per_day")
    assert day == {
        "quota": "tokens_per_day",
        "limit": 1000,
        "used": usage["total_tokens"],
        "own": False,
    }
    assert report["days"][0]["completion_tokens"] == usage["completion_tokens"]
    assert service.send("GET", "/v1/usage", tenant="bolt").json()["days"] == []
    left = 1000 - usage["total_tokens"]
    service.gateway.quotas.admit("acme", 1, tokens=left - 5, background=True)
    for stream in (False, True):
        refusal = service.post("/v1/completions", body | {"stream": stream})
        assert refusal.status_code == 429
        error = refusal.json()["error"]
        assert (error["code"], error["quota"]) == ("quota_exceeded", "tokens_per_day")
        assert error["limit"] == 1000
        assert "It begins anew at" in error["message"]
        assert 1 <= int(refusal.headers["Retry-After"]) <= 86400


def test_a_request_cut_off_while_it_is_let_in_is_not_counted(make_service):
    service = make_service(concurrent=1)

    async def main():
        async def ask():
            async with service.gateway.admit("acme", 1, tokens=9):
                pytest.fail("was let in")

        for _ in range(5):
            task = asyncio.create_task(ask())
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await asyncio.sleep(0.5)

    asyncio.run(main())
    service.usage()
    quotas = service.gateway.quotas
    assert used(quotas, "concurrent") == used(quotas, "tokens_per_day") == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_asks_one_thing_after_another_never_has_two_running(make_service, stream):
    service = make_service(concurrent=1)
    release = service.gateway.quotas.release

    def slowly(*given, **how):
        time.sleep(0.05)
        release(*given, **how)

    service.gateway.quotas.release = slowly
    body = {"prompt": "a", "max_tokens": 1, "stream": stream}

    async def main():
        async with service.client() as client:
            return [(await client.post("/v1/completions", json=body)).status_code for _ in range(5)]

    assert asyncio.run(main()) == [200] * 5


def test_an_answer_stands_when_its_count_cannot_be_written(make_service, caplog):
    service = make_service(concurrent=1)

    def full(*_, **__):
        raise OSError("no space left")

    service.gateway.quotas.release = full
    assert service.post("/v1/completions").status_code == 200
    assert "quota_not_released" in caplog.text
    assert "no space" not in caplog.text


CRASH = """
import os, sys
from handbill.serving.quota_repository import QuotaRepository
from handbill.serving.quotas import Quota, Quotas
Quotas(QuotaRepository(sys.argv[1]), Quota(tokens_per_day=100), burst=8).admit("acme", 1, tokens=90)
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_process_took_is_counted(gateways, tmp_path, clock):
    url = f"sqlite:///{tmp_path / 'serving' / 'serving.db'}"
    gateways()
    ran = subprocess.run([sys.executable, "-c", CRASH, url], check=False)
    assert ran.returncode == -9
    quotas = Quotas(QuotaRepository(url), Quota(tokens_per_day=100), burst=8)
    assert refused(quotas, tokens=20).code == "quota_exceeded"
    quotas.close()


def test_the_commands_set_and_show(tmp_path):
    run = CliRunner()

    def tenants(*words):
        return run.invoke(tenants_app, [*words, "--home", str(tmp_path)], catch_exceptions=False)

    import handbill.serving.tenants_commands  # noqa: F401 - adds the commands

    tenants("add", "acme")
    shown = tenants("quota", "acme", "--tokens-per-day", "5000", "--concurrent", "3", "--json")
    rows = {row["quota"]: row for row in json.loads(shown.output)["quotas"]}
    assert (rows["tokens_per_day"]["limit"], rows["concurrent"]["limit"]) == (5000, 3)
    assert (rows["requests_per_minute"]["limit"], rows["tokens_per_month"]["limit"]) == (600, None)
    assert "5000" in tenants("quota", "acme").output
    assert json.loads(tenants("usage", "acme", "--json").output)["days"] == []
