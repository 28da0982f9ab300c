"""What a server and a merchant tell Prometheus after a run."""

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from handbill.clients.metrics import client_figures
from handbill.federation.messages import Recipe
from handbill.server.metrics import server_figures
from handbill.server.settings import ServerSettings


def samples(figures):
    class Once:
        def collect(self):
            return figures

    registry = CollectorRegistry(auto_describe=False)
    registry.register(Once())
    text = generate_latest(registry).decode()
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_can_be_read_off_the_figures(make):
    one = make()
    ServerSettings(**one.settings).save(one.home)
    before = samples(server_figures(one.home))
    assert before[("handbill_merchants",)] == 3
    assert ("handbill_last_round_seconds",) not in before
    one.train(recipe=Recipe(rounds=2, personal_steps=0, expected_users=8))
    found = samples(server_figures(one.home))
    assert found[("handbill_rounds_total", "global", "committed")] == 2
    assert found[("handbill_last_round_reports",)] == found[("handbill_last_round_cohort",)] == 3
    assert found[("handbill_bytes_total", "up")] == sum(r.bytes_up for r in one.rounds())
    assert found[("handbill_audit_entries",)] > before[("handbill_audit_entries",)]
    assert found[("handbill_merchants_quarantined",)] == 0
    assert found[("handbill_probe_loss",)] == one.rounds()[-1].metrics["probe_loss"]


def test_a_merchant_sees_its_budget_and_no_loss(make):
    one = make()
    one.train(recipe=Recipe(rounds=2, personal_steps=0, expected_users=8))
    home = one.trainers["shop-a"].home
    found = samples(client_figures(home))
    assert 0 < found[("handbill_epsilon_spent",)] <= found[("handbill_epsilon_limit",)]
    assert found[("handbill_rounds_trained",)] == 2
    assert found[("handbill_ledger_newest",)] == 1
    assert found[("handbill_trainer_up",)] == 0  # no process here answers
    assert not [name for name, *_ in found if "loss" in name]
