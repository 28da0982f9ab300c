"""Whatever a lying server asks, in whatever order, it opens at most one sum, and no small one.

The server here knows everything that its accomplices know (fewer than a third), tells honest merchants
different things, and keeps every answer. What it could compute from them is then worked out: a set of
honest vectors is open when the seeds of all of them are known, and every mask between one of them and
a merchant outside the set is.
"""

import copy
import itertools
import json
import random

import numpy as np
import pytest

from handbill.errors import ProtocolError
from handbill.federation.sealed import seal
from handbill.federation.secagg.session import MIN_COHORT, threshold

SCRIPTS = 3000
COUNTS = (5, 6, 7)


class Liar:
    """Plays one session against honest merchants, by a script that the seed writes."""

    def __init__(self, session, participants, seed):
        self.session, self.participants = session, participants
        self.dice = random.Random(seed)
        names = session.names
        self.corrupt = set(names[: self.dice.randint(0, (len(names) - 1) // 3)])
        self.honest = [name for name in names if name not in self.corrupt]
        self.masked, self.signed = set(), {name: {} for name in names}
        self.held = {"seeds": {}, "maskings": {}}  # owner -> holders whose share is known
        most = self.subset(names, at_least=len(names) - 1)
        # Sets it would like to open: a large one, smaller ones inside it, and one across.
        self.wanted = [most, self.subset(most), self.subset(most), self.subset(names)]

    def subset(self, names, at_least=1):
        size = self.dice.randint(max(at_least, len(names) - 2), len(names))
        return sorted(self.dice.sample(sorted(names), size))

    def play(self):
        for holder, owner in itertools.product(self.corrupt, self.session.names):
            self.learn("seeds", owner, holder)
            self.learn("maskings", owner, holder)
        sharers = self.subset(self.session.names, at_least=len(self.session.names) - 1)
        for name in self.honest:
            told = sharers if self.dice.random() < 0.8 else self.subset(self.session.names)
            request = json.loads(self.session.server.mask_request(name))
            for table in request.values():
                for other in table.keys() - set(told):
                    del table[other]
            if self.ask(name, "mask", request, np.zeros(2, np.uint32)):
                self.masked.add(name)
        for proposed in (*self.wanted, *self.dice.choices(self.wanted, k=2)):
            for name in self.honest:
                told = proposed if self.dice.random() < 0.9 else self.dice.choice(self.wanted)
                if answer := self.ask(name, "agree", {"survivors": told}):
                    self.signed[name][tuple(told)] = answer.decode()
            if self.dice.random() < 0.3:
                self.open(proposed)
        for proposed in self.dice.sample(self.wanted, len(self.wanted)):
            self.open(proposed)

    def open(self, wanted):
        """Ask everybody to open a set, or some other one, with whatever signatures there are."""
        for name in self.honest:
            told = wanted if self.dice.random() < 0.9 else self.dice.choice(self.wanted)
            agreements = {}
            for other in told:
                if other in self.corrupt:
                    body = self.session.server._session.agreement(told)
                    key = self.session.identities[other]
                    agreements[other] = seal("secagg/survivors", body, key).decode()
                elif tuple(told) in self.signed[other]:
                    agreements[other] = self.signed[other][tuple(told)]
            if answer := self.ask(name, "unmask", {"agreements": agreements}):
                for kind, shares in json.loads(answer).items():
                    for owner in shares:
                        self.learn(kind, owner, name)

    def ask(self, name, step, request, *vector):
        try:
            return getattr(self.participants[name], step)(json.dumps(request).encode(), *vector)
        except ProtocolError:
            return None

    def learn(self, kind, owner, holder):
        self.held[kind].setdefault(owner, set()).add(holder)

    def known(self, kind):
        """Owners whose secret of this kind can be put together."""
        enough = threshold(len(self.session.names))
        return {owner for owner, who in self.held[kind].items() if len(who) >= enough}

    def opened(self):
        """Sets of honest merchants whose sum can be computed, none inside another."""
        seeds, maskings = self.known("seeds"), self.known("maskings") | self.corrupt
        groups = [{name} for name in self.honest]
        for one, two in itertools.combinations(self.honest, 2):
            if not {one, two} & maskings:  # a mask between them that is not known
                joined = next(g for g in groups if one in g) | next(g for g in groups if two in g)
                groups = [g for g in groups if not g & joined] + [joined]
        return [group for group in groups if group <= seeds & self.masked]


@pytest.fixture(scope="module")
def shared(open_session):
    """A session of each size in which everybody has shared."""
    sessions = {count: open_session(count, dimension=2) for count in COUNTS}
    for session in sessions.values():
        session.share()
    return sessions


def play(session, seed, breaks=lambda participant: None):
    participants = {}
    for name, participant in session.participants.items():
        participants[name] = copy.copy(participant)
        participants[name]._held, participants[name]._agreed = {}, []
        breaks(participants[name])
    liar = Liar(session, participants, seed)
    liar.play()
    return liar


def check(liar):
    """The two things that SA-1 promises."""
    count, opened = len(liar.session.names), liar.opened()
    assert len(opened) <= 1
    assert all(len(g) >= max(threshold(count), MIN_COHORT) - len(liar.corrupt) for g in opened)
    assert not (liar.known("seeds") & liar.known("maskings")) - liar.corrupt


@pytest.mark.parametrize("count", COUNTS)
def test_no_script_opens_a_small_sum_or_two(shared, count):
    sums = 0
    for seed in range(SCRIPTS // len(COUNTS)):
        liar = play(shared[count], seed)
        check(liar)
        sums += len(liar.opened())
    assert sums > 20  # the scripts do get somewhere


def answers_again(participant):
    """Opens every set that it has signed for, not one."""
    unmask = participant.unmask

    def again(request):
        held, step = dict(participant._held), participant._step
        answer = unmask(request)
        participant._held, participant._step = held, step
        return answer

    participant.unmask = again


def trusts_the_server(participant):
    """Opens what it signed for, without everybody's signature on it."""
    unmask = participant.unmask

    def at_once(request):
        told = json.loads(request)["agreements"]
        wanted = next((s for s in reversed(participant._agreed) if set(told) <= s), None)
        if wanted is None:
            return unmask(request)
        lost = participant._held.keys() - wanted
        return json.dumps({"seeds": dict.fromkeys(wanted), "maskings": dict.fromkeys(lost)})

    participant.unmask = at_once


@pytest.mark.parametrize("breaks", [answers_again, trusts_the_server])
def test_the_scripts_find_a_merchant_without_one_of_the_rules(shared, breaks):
    def play_all():
        for seed in range(SCRIPTS // len(COUNTS)):
            check(play(shared[6], seed, breaks))

    with pytest.raises(AssertionError):
        play_all()
