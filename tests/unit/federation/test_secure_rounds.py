"""Secure rounds over a network of merchants with fixed updates: only sums, in one group or several."""

import copy
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from handbill.clients.merchant import SERVER_KEY
from handbill.clients.secure_sums import ROSTER_FILE, SecureSums
from handbill.errors import HandbillError, ProtocolError, RoundError
from handbill.federation import secure_rounds
from handbill.federation.aggregation import robust_mean
from handbill.federation.messages import (
    Instruction,
    Recipe,
    Report,
    Signed,
    attached,
    detach,
    open_signed,
    sign,
)
from handbill.federation.roster import Roster
from handbill.federation.rounds import Exchange, RoundPlan
from handbill.federation.sealed import seal, unseal
from handbill.federation.secagg.ring import Ring
from handbill.federation.secagg.session import SessionKeys
from handbill.federation.secure_rounds import ADVERT, ROSTER, STATEMENT, SecureRound, dimension
from handbill.federation.transport import InProcessTransport
from handbill.generator.adapters import AdapterSpec
from handbill.generator.artifacts import public_pem

SHAPES = {"b1": (3, 2), "b2": (2, 2)}
WEIGHTS = {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()}
OPERATOR = Ed25519PrivateKey.generate()


class Merchant:
    """Its trainer trains at once and always the same; a test may make it fail at a phase."""

    def __init__(self, name, home, value):
        self.name, self.key, self.value = name, Ed25519PrivateKey.generate(), value
        (home / SERVER_KEY).parent.mkdir(parents=True)
        (home / SERVER_KEY).write_bytes(public_pem(OPERATOR.public_key()))
        self.home, self.burnt, self.phases = home, 0, []
        self.sums = SecureSums(home, name, self.key, OPERATOR.public_key(), floor=5)
        self.fails_at, self.sees = None, lambda message: message
        self.says = lambda phase, content: content

    def handle(self, message):
        signed = Signed.from_bytes(self.sees(message))
        asked, tensors = open_signed(signed, OPERATOR.public_key(), Instruction)
        self.phases.append(asked.phase)
        if asked.phase == self.fails_at:
            raise HandbillError("power is out in town")
        statement, roster = detach(tensors, STATEMENT), detach(tensors, ROSTER)
        if asked.phase == "share":
            content = self.sums.open(
                asked, tensors, statement=statement, roster=roster, burn=self.burn
            )
            self.sums.put({n: np.full(s, self.value, np.float32) for n, s in SHAPES.items()})
        else:
            content = self.sums.answer(asked, statement)
        report = Report(
            merchant=self.name,
            run=asked.run,
            round=asked.round,
            attempt=asked.attempt,
            stage=asked.stage,
            parent=asked.parent,
            ledger_head="0" * 64,
            phase=asked.phase,
        )
        return sign(report, self.says(asked.phase, content), self.key).to_bytes()

    def burn(self):
        self.burnt += 1


class Network:
    """So many merchants, and the server's side of their rounds."""

    def __init__(self, folder, count, called="m{:02d}"):
        names = [called.format(n) for n in range(count)]
        self.merchants = {m: Merchant(m, folder / m, n / 100) for n, m in enumerate(names)}
        self.roster, self.adverts, self.noted = Roster(), {}, []
        for name, merchant in self.merchants.items():
            self.enrol(name, merchant.key)

    def enrol(self, name, key):
        public = key.public_key().public_bytes_raw().hex()
        line = self.roster.next_line("enrol", name, public, time="now", operator=OPERATOR)
        self.roster = Roster.read([*self.roster.lines, line], OPERATOR.public_key())

    def round(self, number=1, *, groups=None, stage="warmup", transport=None, **given):
        plan = RoundPlan(
            run="run-1",
            round=number,
            stage=stage,
            parent="",
            base_digest="sha256:" + "1" * 64,
            spec=AdapterSpec(rank=2, layers=(0,)),
            recipe=Recipe(),
            cohort={name: self.merchants[name].key.public_key() for name in self.merchants},
            min_reports=5,
            **{"ring": Ring(), **given},
        )
        handlers = {name: merchant.handle for name, merchant in self.merchants.items()}
        secure = SecureRound(
            (transport or InProcessTransport)(handlers),
            plan,
            key=OPERATOR,
            roster=self.roster,
            shapes=SHAPES,
            adverts=self.adverts,
            note=lambda merchants, what, _: self.noted.extend((what, m) for m in merchants),
        )
        return secure.run(WEIGHTS, groups or [list(self.merchants)])

    def did(self, what):
        """Who was noted for something."""
        return {merchant for noted, merchant in self.noted if noted == what}

    def mean_of(self, names):
        return np.mean([self.merchants[name].value for name in names])


@pytest.fixture
def network(tmp_path):
    return lambda count=6, **given: Network(tmp_path, count, **given)


def close_to(mean, value, ring=None):
    return all(np.allclose(v, value, atol=(ring or Ring()).step) for v in mean.values())


@pytest.mark.parametrize("bits", [24, 32])
def test_the_mean_is_that_of_all_and_nobodys_update_was_seen(network, bits):
    net, ring = network(), Ring(bits=bits)
    outcome, (group,) = net.round(ring=ring)
    assert outcome.reporters == list(group.members) == list(net.merchants)
    assert {name: value.shape for name, value in group.mean.items()} == SHAPES
    assert close_to(group.mean, net.mean_of(net.merchants), ring)
    assert all(merchant.burnt == 1 for merchant in net.merchants.values())
    assert outcome.ledger_heads.keys() == set(net.merchants)


def test_a_round_takes_four_messages_and_the_first_one_more(network):
    net = network()
    net.round(1)
    assert net.merchants["m00"].phases == ["advertise", "share", "mask", "agree", "unmask"]
    net.round(2)
    assert net.merchants["m00"].phases[5:] == ["share", "mask", "agree", "unmask"]


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "agree", "unmask"])
def test_whoever_fails_is_named_and_left_out_and_back_in_the_next_round(network, phase):
    net = network(8)
    net.merchants["m03"].fails_at = phase
    outcome, (group,) = net.round(1)
    inside = [n for n in net.merchants if n != "m03" or phase == "unmask"]
    assert list(group.members) == outcome.reporters == inside
    assert outcome.failures["m03"] == "power is out in town"
    assert close_to(group.mean, net.mean_of(inside))
    net.merchants["m03"].fails_at = None
    outcome, (group,) = net.round(2)
    assert outcome.reporters == list(net.merchants)
    assert outcome.failures == {}


def test_too_many_lost_and_there_is_no_sum_and_the_next_round_is_as_good_as_ever(network):
    net = network()
    for name in ("m01", "m02"):
        net.merchants[name].fails_at = "mask"
    with pytest.raises(RoundError, match=r"0 good reports, 5 needed.*5 at least"):
        net.round(1)
    assert all(merchant.burnt == 0 for merchant in net.merchants.values())
    for merchant in net.merchants.values():
        merchant.fails_at = None
    assert len(net.round(2)[0].reporters) == 6


def test_one_merchant_told_of_other_weights_stops_the_session_before_any_vector(network):
    net = network()

    def other_weights(message):
        asked, tensors = open_signed(Signed.from_bytes(message), OPERATOR.public_key(), Instruction)
        if asked.phase == "share":
            tensors["b1"] = tensors["b1"] + np.float32(1e-6)
        return sign(asked, tensors, OPERATOR).to_bytes()

    net.merchants["m02"].sees = other_weights
    with pytest.raises(RoundError, match="m02: its shares do not open for others"):
        net.round()
    assert all("agree" not in merchant.phases for merchant in net.merchants.values())


def test_one_merchant_shown_another_roster_stops_the_session_before_any_vector(network):
    net = network()
    longer = copy.copy(net)
    longer.roster = net.roster
    longer.enrol("eve", Ed25519PrivateKey.generate())

    def other_roster(message):
        asked, tensors = open_signed(Signed.from_bytes(message), OPERATOR.public_key(), Instruction)
        if asked.phase == "share":
            tensors[ROSTER] = np.frombuffer("\n".join(longer.roster.lines).encode(), np.uint8)
        return sign(asked, tensors, OPERATOR).to_bytes()

    net.merchants["m02"].sees = other_roster
    with pytest.raises(RoundError, match="does not open"):
        net.round()


def test_a_roster_that_was_rewritten_is_refused_and_the_one_seen_is_kept(network, tmp_path):
    net = network()
    net.round(1)
    seen = (tmp_path / "m00" / ROSTER_FILE).read_text()
    assert seen.splitlines() == list(net.roster.lines)
    net.roster = Roster()
    for name, merchant in reversed(net.merchants.items()):
        net.enrol(name, merchant.key)
    with pytest.raises(RoundError, match=r"rewritten it, or shows an older one"):
        net.round(2)
    assert (tmp_path / "m00" / ROSTER_FILE).read_text() == seen


def test_a_merchant_enrolled_with_a_key_that_is_not_its_own_takes_no_part(network):
    net = network(7)
    net.enrol("m02", Ed25519PrivateKey.generate())
    outcome, (group,) = net.round()
    assert "m02" not in outcome.reporters
    assert "not signed" in outcome.failures["m02"]
    assert len(group.members) == 6


def test_a_trainer_started_again_in_a_session_is_lost_to_that_session_alone(network):
    net = network()
    merchant = net.merchants["m04"]

    def restart(message):
        asked, _ = open_signed(Signed.from_bytes(message), OPERATOR.public_key(), Instruction)
        if (asked.phase, asked.round) == ("mask", 1):
            merchant.sums = SecureSums(
                merchant.home, "m04", merchant.key, OPERATOR.public_key(), floor=5
            )
        return message

    merchant.sees = restart
    outcome, _ = net.round(1)
    assert "started again" in outcome.failures["m04"]
    assert net.round(2)[0].reporters == list(net.merchants)


def test_a_phase_of_another_round_is_refused(network):
    net = network()
    net.round(1)
    sums = net.merchants["m00"].sums
    asked = Instruction(
        merchant="m00",
        run="run-1",
        round=1,
        attempt=0,
        stage="warmup",
        parent="",
        base_digest="",
        spec=AdapterSpec(rank=2, layers=(0,)),
        recipe=Recipe(),
        phase="unmask",
        ring=Ring(),
    )
    with pytest.raises(ProtocolError, match="no such session"):
        sums.answer(asked, json.dumps({"agreements": {}}).encode())


def test_of_several_groups_the_median_holds_against_a_group_with_a_poisoner(network):
    net = network(15)
    groups = [list(net.merchants)[start::3] for start in range(3)]
    net.merchants["m00"].value = -100.0
    outcome, means = net.round(groups=groups)
    assert outcome.reporters == [name for group in groups for name in group]
    assert [group.members for group in means] == [tuple(sorted(group)) for group in groups]
    plain = np.mean([group.mean["b1"][0, 0] for group in means])
    robust = robust_mean([group.mean for group in means], [5, 5, 5])["b1"][0, 0]
    honest = net.mean_of(list(net.merchants)[1:])
    assert abs(robust - honest) < 0.02
    assert abs(plain - honest) > 0.06


def test_a_group_that_fails_does_not_take_the_others_with_it(network):
    net = network(10)
    groups = [list(net.merchants)[:5], list(net.merchants)[5:]]
    for name in groups[0][:2]:
        net.merchants[name].fails_at = "mask"
    outcome, means = net.round(groups=groups)
    assert outcome.reporters == groups[1]
    assert len(means) == 1
    assert set(outcome.failures) == set(groups[0])


def test_a_group_of_four_is_not_summed(network):
    net = network(9)
    groups = [list(net.merchants)[:4], list(net.merchants)[4:]]
    outcome, (group,) = net.round(groups=groups)
    assert list(group.members) == groups[1]
    assert all("5 to 256" in outcome.failures[name] for name in groups[0])
    assert ADVERT not in net.adverts


class Liar:
    """Says one thing wrong in one phase, by the name of what is in its answer."""

    def __init__(self, phase, what, change):
        self.phase, self.what, self.change = phase, what, change

    def __call__(self, phase, content):
        if phase == self.phase and self.what in content:
            said = self.change(content[self.what].tobytes())
            content = {**content, **attached(self.what, said)}
        return content


def resealed(merchant, **fields):
    def change(advert):
        body = unseal(advert, "secagg/advert", merchant.key.public_key())
        new = {n: body[v] if v == "encryption" else v for n, v in fields.items()}
        return seal("secagg/advert", body | new, merchant.key)

    return change


def in_json(**fields):
    return lambda answer: json.dumps(json.loads(answer) | fields).encode()


def share(change):
    """One share of an answer changed."""

    def changed(answer):
        shares = json.loads(answer)["shares"]
        return json.dumps({"shares": shares | {"m00": change(shares["m00"])}}).encode()

    return changed


DEEP = json.loads("[" * 200 + "]" * 200)
LIES = {
    "an advert in UTF-16": lambda m: ("advertise", ADVERT, lambda a: a.decode().encode("utf-16")),
    "an advert that is none": lambda m: ("advertise", ADVERT, lambda a: b"[" * 50_000),
    "an advert with one key twice": lambda m: (
        "advertise",
        ADVERT,
        resealed(m, masking="encryption"),
    ),
    "a key of low order": lambda m: ("advertise", ADVERT, resealed(m, masking="00" * 32)),
    "a key for shares of low order": lambda m: (
        "advertise",
        ADVERT,
        resealed(m, encryption="00" * 32),
    ),
    "a key that is a list": lambda m: ("advertise", ADVERT, resealed(m, masking=DEEP)),
    "a commitment that is a text": lambda m: (
        "advertise",
        ADVERT,
        resealed(m, commitment="\u5c0f"),
    ),
    "a share that is no text": lambda m: ("share", STATEMENT, share(lambda s: "\ud800")),
    "a share that is no share": lambda m: ("share", STATEMENT, share(lambda s: s[:-4])),
    "a share that is deep": lambda m: ("share", STATEMENT, share(lambda s: DEEP)),
    "a share that is long": lambda m: ("share", STATEMENT, share(lambda s: s * 9999)),
    "shares that are none": lambda m: ("share", STATEMENT, in_json(shares=7)),
    "a vector that is noise": lambda m: ("mask", STATEMENT, lambda a: b"\xff" * 99),
    "a vector that is nothing": lambda m: ("mask", STATEMENT, lambda a: b""),
    "a vector cut short": lambda m: ("mask", STATEMENT, lambda a: a[:-1]),
    "an agreement in UTF-16": lambda m: ("agree", STATEMENT, lambda a: a.decode().encode("utf-16")),
    "an agreement without signature": lambda m: ("agree", STATEMENT, in_json(signature=None)),
    "an agreement that is deep": lambda m: ("agree", STATEMENT, in_json(body=DEEP)),
    "shares of secrets that are none": lambda m: ("unmask", STATEMENT, in_json(seeds=DEEP)),
    "shares of secrets that are short": lambda m: (
        "unmask",
        STATEMENT,
        in_json(seeds={f"m{n:02d}": "ab" for n in range(8)}),
    ),
}


@pytest.mark.parametrize("lie", LIES)
def test_garbage_of_one_merchant_in_any_phase_is_its_own_failure(network, lie):
    net = network(8)
    liar = net.merchants["m03"]
    liar.says = Liar(*LIES[lie](liar))
    outcome, (group,) = net.round(1)
    assert list(outcome.failures) == ["m03"]
    phase = liar.says.phase
    inside = [n for n in net.merchants if n != "m03" or phase == "unmask"]
    assert list(group.members) == outcome.reporters == inside
    assert close_to(group.mean, net.mean_of(inside))
    liar.says = lambda phase, content: content
    assert net.round(2)[0].reporters == list(net.merchants)


def test_anothers_keys_cannot_be_advertised_again(network):
    net = network(8)
    keys = {}
    net.merchants["m02"].says = lambda phase, content: keys.update(content) or content

    def copied(advert):
        fields = unseal(
            detach(dict(keys), ADVERT), "secagg/advert", net.merchants["m02"].key.public_key()
        )
        return resealed(net.merchants["m03"], encryption=fields["masking"])(advert)

    net.merchants["m03"].says = Liar("advertise", ADVERT, copied)
    outcome, (group,) = net.round(1)
    assert outcome.failures == {"m03": "m03 advertised a key that another had advertised before"}
    assert "m02" in group.members


@pytest.mark.parametrize("phase", ["advertise", "share", "mask", "agree", "unmask"])
def test_an_answer_longer_than_a_phase_has_room_for_is_not_read(network, phase):
    net = network(8)
    what = ADVERT if phase == "advertise" else STATEMENT
    net.merchants["m03"].says = Liar(phase, what, lambda answer: answer + b" " * 300_000)
    outcome, _ = net.round()
    assert list(outcome.failures) == ["m03"]
    assert "was not read" in outcome.failures["m03"]


@pytest.mark.parametrize("ring", [Ring(bits=24), Ring()])
def test_each_part_of_an_answer_has_the_room_it_needs(network, ring):
    net = network(12, called="m{:062d}")  # the longest names
    sizes = {}

    def measured(phase, content):
        for what, value in content.items():
            sizes[phase, what] = max(sizes.get((phase, what), 0), value.nbytes)
        return content

    for name, merchant in net.merchants.items():
        merchant.says = measured
        merchant.fails_at = "mask" if name in list(net.merchants)[:3] else None
    net.round(ring=ring)
    shares = 12 * secure_rounds._SHARE_BYTES
    assert 0 < sizes["share", STATEMENT] < shares
    assert 0 < sizes["unmask", STATEMENT] < shares
    vector = dimension(SHAPES) * ring.bits // 8
    sealed = [sizes[phase, ADVERT] for phase in ("advertise", "unmask")]
    sealed += [sizes["agree", STATEMENT], sizes["mask", STATEMENT] - vector]
    assert 0 < max(sealed) < secure_rounds._SEALED_BYTES


@pytest.mark.parametrize("at", ["mask", "agree", "unmask"])
def test_an_answer_of_an_earlier_phase_attempt_or_round_is_refused_whatever_it_says(network, at):
    net = network(8)
    handle, said = net.merchants["m03"].handle, {}

    def replaying(message):
        asked, _ = open_signed(Signed.from_bytes(message), OPERATOR.public_key(), Instruction)
        before = said.get(at) if asked.phase == at else None
        said[asked.phase] = handle(message)
        return before or said[asked.phase]

    net.merchants["m03"].handle = replaying
    net.round(1)
    assert net.round(1, attempt=1)[0].failures == {"m03": "report is of another attempt"}
    said[at] = said["share"]
    assert net.round(2)[0].failures == {"m03": "report is of another round"}

    def of_the_phase_before(message):
        asked, _ = open_signed(Signed.from_bytes(message), OPERATOR.public_key(), Instruction)
        said[asked.phase] = handle(message)
        return said["share"] if asked.phase == at else said[asked.phase]

    net.merchants["m03"].handle = of_the_phase_before
    assert net.round(3)[0].failures == {"m03": "report is of another phase"}


def tampers(at, name, change):
    """A merchant that changes what it says in one phase."""

    def says(phase, content):
        if phase != at or name not in content:
            return content
        data = change(content[name].tobytes())
        return content | {name: np.frombuffer(data, np.uint8)}

    return says


def other_keys(merchant):
    """Signed adverts that no honest merchant sends."""

    def advert(**changed):
        body = SessionKeys().advertise(merchant.name, merchant.key)
        body = json.loads(json.loads(body)["body"])
        return seal(
            "secagg/advert", body | (changed or {"masking": body["encryption"]}), merchant.key
        )

    return [advert(), advert(masking="00" * 32), advert(encryption="no key"), b"junk"]


@pytest.mark.parametrize("phase", ["advertise", "unmask"])
@pytest.mark.parametrize("which", range(4))
def test_a_bad_advert_costs_its_merchant_alone(network, phase, which):
    net = network(7)
    bad = net.merchants["m03"]
    bad.says = tampers(phase, ADVERT, lambda _: other_keys(bad)[which])
    outcome, (group,) = net.round(1)
    inside = [n for n in net.merchants if n != "m03" or phase == "unmask"]
    assert list(group.members) == inside
    assert close_to(group.mean, net.mean_of(inside))
    assert net.did("broke") == set(outcome.failures) == {"m03"}
    assert net.did("missed") == set()
    assert net.did("signed") == set(inside)
    assert net.adverts.keys() == net.merchants.keys() - {"m03"}


JUNK = (
    lambda _: b"",
    lambda _: b"{}",
    lambda data: data[:-1],
    lambda data: b"\xff\xff\xff\xff" + data[4:],
    lambda data: data.replace(b"signature", b"signatura").replace(b":", b"\xff", 3),
)


@pytest.mark.parametrize("phase", ["share", "mask", "agree", "unmask"])
@pytest.mark.parametrize("change", JUNK)
def test_what_no_honest_merchant_says_costs_its_merchant_alone(network, phase, change):
    net = network(7)
    net.merchants["m03"].says = tampers(phase, STATEMENT, change)
    outcome, (group,) = net.round(1)
    inside = [n for n in net.merchants if n != "m03" or phase == "unmask"]
    assert list(group.members) == inside
    assert close_to(group.mean, net.mean_of(inside))
    assert net.did("broke") == set(outcome.failures) == {"m03"}
    assert net.did("missed") == set()


def test_who_is_merely_away_or_refuses_broke_nothing(network):
    net = network(8)
    net.merchants["m03"].fails_at = "agree"
    net.merchants["m04"].sees = lambda message: message[:-1]  # it reads half, and says so
    net.round(1)
    assert net.did("missed") == {"m03", "m04"}
    assert net.did("broke") == net.did("spoiled") == set()


def test_who_is_not_waited_for_missed_nothing(network):
    net = network(10)
    outcome, (group,) = net.round(1, enough_reports=8)
    assert len(group.members) == 8
    assert set(outcome.failures.values()) == {"8 others were enough"}
    assert net.did("signed") == {name for _, name in net.noted} == set(group.members)


def bad_shares(net, name, victims):
    """A merchant whose shares do not open for some."""

    def change(data):
        fields = json.loads(data)
        fields["hashes"] |= dict.fromkeys(victims, "0" * 64)
        return json.dumps(fields).encode()

    net.merchants[name].says = tampers("share", STATEMENT, change)


def test_whose_share_does_not_open_for_one_is_in_the_sum_and_that_one_is_not(network):
    net = network(7)
    bad_shares(net, "m03", ["m00"])
    outcome, (group,) = net.round()
    assert list(group.members) == [n for n in net.merchants if n != "m00"]
    assert "share from m03 does not open" in outcome.failures["m00"]
    assert net.did("broke") == net.did("missed") == set()


def test_whose_shares_open_for_too_few_is_blamed_before_anybody_signed(network):
    net = network(7)
    bad_shares(net, "m03", ["m00", "m01", "m02"])
    with pytest.raises(RoundError, match="m03: its shares do not open for others"):
        net.round()
    assert net.did("broke") == {"m03"}
    assert net.did("missed") == net.did("signed") == set()
    assert all(merchant.burnt == 0 for merchant in net.merchants.values())


def test_who_shared_something_else_than_its_seed_is_blamed(network):
    net = network(7)
    bad = net.merchants["m03"]
    net.round(1)
    body = json.loads(json.loads(net.adverts["m03"])["body"]) | {"commitment": "0" * 64}
    net.adverts["m03"] = forged = seal("secagg/advert", body, bad.key)
    keys = bad.sums._keys

    class Fixed(SessionKeys):
        def advertise(self, *_):
            return forged

    bad.sums._keys = Fixed(keys.encryption, keys.masking, keys.seed)
    net.noted.clear()
    with pytest.raises(RoundError, match="m03 shared something else than its secret"):
        net.round(2)
    assert net.did("broke") == {"m03"}
    assert net.did("signed") == set(net.merchants)
    assert net.did("spoiled") == set()


def test_a_vector_of_words_no_update_has_spoils_its_sum_and_nobody_can_say_whose_it_was(network):
    net = network(10)
    groups = [list(net.merchants)[:5], list(net.merchants)[5:]]
    bad = net.merchants["m03"].sums
    put = bad.put

    class Wild(Ring):
        def encode(self, values):
            return super().encode(values) | np.uint32(1 << 31)

    def wild(update):
        put(update)
        bad._ring = Wild()

    bad.put = wild
    outcome, (group,) = net.round(groups=groups)
    assert list(group.members) == groups[1]
    assert net.did("spoiled") == set(outcome.failures) == set(groups[0])
    assert net.did("broke") == net.did("missed") == set()


class Silent(InProcessTransport):
    """Whoever fails says nothing at all; the clock goes on while it is waited for."""

    now = 0.0

    def receive(self, timeout_s):
        reply = super().receive(timeout_s)
        if reply is not None and not reply.error:
            return reply
        Silent.now += max(timeout_s, 0)
        return None


STALLS = ("share", "mask", "agree", "unmask")


@pytest.mark.parametrize("phases", [*[(phase,) for phase in STALLS], STALLS])
def test_a_round_is_over_by_its_deadline_whoever_stalls_and_where(network, monkeypatch, phases):
    clock = SimpleNamespace(monotonic=lambda: Silent.now, time=time.time)
    for module in ("rounds", "secure_rounds"):
        monkeypatch.setattr(f"handbill.federation.{module}.time", clock)
    net = network(14)
    net.round(1)
    for name, phase in zip(net.merchants, phases, strict=False):
        net.merchants[name].fails_at = phase
    began = Silent.now
    outcome, (group,) = net.round(2, transport=Silent, deadline_s=900.0)
    assert 0 < Silent.now - began <= 900.0
    assert len(group.members) == 14 - len(phases) + ("unmask" in phases)
    assert net.did("missed") == set(outcome.failures) == set(list(net.merchants)[: len(phases)])


def test_training_is_waited_for_the_longest(network, monkeypatch):
    asked = []
    real = Exchange.ask
    monkeypatch.setattr(
        Exchange,
        "ask",
        lambda self, phase, *rest, room, deadline_s: (
            asked.append((phase, deadline_s))
            or real(self, phase, *rest, room=room, deadline_s=deadline_s)
        ),
    )
    network().round(1, deadline_s=900.0)
    given = dict(asked)
    assert given["advertise"] < 0.4 * 900
    assert 0.7 * 900 < given["share"] <= 0.75 * 900
    # Training was done at once here: what it left is for the phases after it.
    assert given["mask"] > 0.19 * 900
    assert given["unmask"] > 0.98 * 900


def test_nobody_is_asked_to_sign_without_time_to_open_the_sum(network, monkeypatch):
    monkeypatch.setattr(secure_rounds, "_SIGNING", 1.0)  # of the round's time is never left
    net = network(7)
    with pytest.raises(RoundError, match="no time is left to open the sum"):
        net.round()
    assert net.did("signed") == set()
    assert all(merchant.burnt == 0 for merchant in net.merchants.values())
