"""A run that is under way is kept going until it has ended, whoever dies: the keeper, by itself."""

import os
import socket
import subprocess
import sys
from dataclasses import replace

import pytest

from handbill.errors import InputError, LeaseError
from handbill.federation.flower import FlowerError
from handbill.generator.adapters import AdapterSpec
from handbill.generator.artifacts import utc_now
from handbill.server import runs
from handbill.server.lease import Lease
from handbill.server.operate import end_run
from handbill.server.progress import Progress
from handbill.server.records import Run
from handbill.server.recovery import recover
from handbill.server.registry import open_registry
from handbill.server.runs import RESTARTS, RunKeeper, begin
from handbill.server.settings import AdapterSettings, ServerSettings


def run_of(name):
    spec = AdapterSpec(rank=2, alpha=4.0, layers=(0, 1), seed=1)
    return Run(
        id=name,
        base_name="tiny",
        base_digest="sha256:0",
        recipe={"warmup_rounds": 0, "rounds": 3, "personal_steps": 0},
        adapter=spec.to_dict(),
        started_at=utc_now(),
    )


class Flower:
    """Takes every run it is given and starts nothing."""

    def __init__(self):
        self.submitted, self.word, self.up = [], "running", True

    def healthy(self):
        return self.up

    def submit(self, run, *, mode):
        assert mode == "train"
        self.submitted.append(run)
        return len(self.submitted)

    def status(self, flower_run):
        assert flower_run == len(self.submitted)
        return self.word


class Kept:
    """A registry with a run under way, and its keeper."""

    def __init__(self, home):
        self.home, self.flower, self.said = home, Flower(), []
        self.registry = open_registry(home, create=True)
        self.registry.start_run(run_of("run-1"))
        self.restart()

    def restart(self):
        """The keeper of a server that was started again."""
        self.keeper = RunKeeper(
            self.registry, self.flower, progress=Progress(self.home), say=self.said.append
        )

    def look(self, times=3):
        for _ in range(times):
            self.keeper.look()
        return len(self.flower.submitted)

    def commit(self, number):
        attempt = self.registry.open_round("run-1", number, "global", ["shop-a"])
        with self.registry.database.begin() as uow:
            uow.rounds.close(replace(attempt, status="committed", survivors=["shop-a"]))
            uow.commit()

    def holds(self, holder):
        """Give the lease to somebody by hand."""
        with self.registry.database.begin() as uow:
            uow.leases.put(holder)
            uow.commit()

    def dies(self):
        """A coordinator takes the lease, is seen with it, and is killed."""
        self.holds(f"{socket.gethostname()}/{os.getpid()}/it")
        self.look()
        self.holds(f"{socket.gethostname()}/{dead_pid()}/it")


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "_LOOK_S", 0.0)
    one = Kept(tmp_path)
    yield one
    one.registry.database.close()


def test_a_run_under_way_is_submitted_once_while_it_is_on_its_way_and_while_it_lives(kept):
    assert kept.look() == 1
    with Lease(kept.registry.database):
        assert kept.look() == 1
    kept.registry.end_run("run-1", "finished")
    assert kept.look() == 1


def test_a_server_that_is_started_again_takes_a_run_up_at_its_next_round(kept):
    kept.commit(1)
    kept.restart()
    kept.look()
    assert kept.flower.submitted == ["run-1"]
    assert kept.said == ["run run-1 is taken up at global round 2 of 3"]


def test_a_coordinator_that_outlived_its_server_is_left_alone(kept):
    with Lease(kept.registry.database):
        kept.restart()
        assert kept.look() == 0


def test_a_dead_coordinators_run_is_submitted_again_at_once(kept):
    kept.look()
    kept.dies()
    assert kept.look() == 2


def test_a_coordinator_of_another_machine_is_given_the_time_of_a_lease(kept):
    kept.holds("elsewhere/1/it")
    assert kept.look() == 0


def test_what_died_before_it_had_the_lease_is_submitted_again(kept, monkeypatch):
    monkeypatch.setattr(runs, "_START_S", 0.0)
    assert kept.look() == 1
    kept.flower.word = "finished:failed"
    assert kept.look(1) == 2


def test_a_run_that_dies_again_and_again_has_failed_with_a_reason(kept):
    for _ in range(RESTARTS):
        kept.look()
        kept.dies()
    assert kept.look() == RESTARTS
    assert kept.registry.run("run-1").status == "failed"
    assert "died 5 times" in kept.registry.run("run-1").reason
    assert kept.look() == RESTARTS
    (fact,), _ = Progress(kept.home).since(0)
    assert (fact["event"], fact["run"]) == ("failed", "run-1")


def test_deaths_are_counted_anew_after_every_round(kept):
    for number in (1, 2, 3):
        for _ in range(RESTARTS - 1):
            kept.look()
            kept.dies()
        kept.commit(number)
    assert kept.registry.run("run-1").status == "running"


def test_it_waits_for_a_superlink_that_is_away_or_refuses(kept, monkeypatch):
    kept.flower.up = False
    assert kept.look() == 0
    kept.flower.up = True

    def refuses(*_, **__):
        raise FlowerError("no")

    with monkeypatch.context() as patch:
        patch.setattr(kept.flower, "submit", refuses)
        assert kept.look() == 0
    assert kept.look() == 1


def test_what_was_ended_by_the_operator_commits_no_more_and_is_not_taken_up(kept):
    with Lease(kept.registry.database):
        attempt = kept.registry.open_round("run-1", 1, "global", ["shop-a"])
        other = open_registry(kept.home)
        end_run(kept.home, "run-1")
        other.database.close()
        with pytest.raises(LeaseError, match="ended by the operator"):
            kept.registry.open_round("run-1", 2, "global", ["shop-a"])
        with pytest.raises(LeaseError, match="ended by the operator"):
            kept.registry.end_run("run-1", "finished")
        with pytest.raises(LeaseError, match="ended by the operator"):
            kept.registry.start_run(run_of("run-1"), revive=False)  # by one that was on its way
    with pytest.raises(LeaseError, match="ended by the operator"):  # nor without a lease
        kept.registry.end_run("run-1", "failed", "of another opinion")
    assert kept.registry.run("run-1").reason == "ended by the operator"
    kept.registry.start_run(run_of("run-2"))
    with Lease(kept.registry.database):  # what was left open stands in nobody's way
        assert recover(kept.registry).abandoned == (attempt.name,)
        kept.registry.open_round("run-2", 1, "global", ["shop-a"])
    kept.registry.end_run("run-2", "failed")
    assert kept.look() == 0
    with pytest.raises(InputError, match="is not under way: failed"):
        end_run(kept.home, "run-1")


def test_one_run_at_a_time_and_one_that_failed_goes_on(kept, tiny_base):
    settings = ServerSettings(base=str(tiny_base.path), adapter=AdapterSettings(layers=1))
    with pytest.raises(InputError, match=r"run run-1 is under way.*server end run-1"):
        begin(kept.registry, settings, "run-2", what="copy", publish=False)
    kept.registry.end_run("run-1", "failed", "nobody came")
    begin(kept.registry, settings, "run-2", what="copy", publish=False)
    begun = kept.registry.run("run-2")
    kept.registry.end_run("run-2", "failed", "nobody came")
    with pytest.raises(InputError, match="run run-2 trains copy"):
        begin(kept.registry, settings, "run-2", what="interest", publish=False)
    other = replace(settings, recipe=replace(settings.recipe, rounds=9))
    with pytest.raises(InputError, match="run run-2 began with rounds=5; server"):
        begin(kept.registry, other, "run-2", what="copy", publish=False)
    begin(kept.registry, settings, "run-2", what="copy", publish=True)
    again = kept.registry.run("run-2")
    assert (again.status, again.reason, again.ended_at, again.publish) == ("running", "", "", True)
    assert (again.recipe, again.started_at) == (begun.recipe, begun.started_at)
