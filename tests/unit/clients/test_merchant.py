"""A merchant's settings and policy: files an owner edits, errors that name file and key."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.clients.merchant import Merchant, Policy
from handbill.errors import InputError, MissingError, PolicyError
from handbill.privacy.accounting import default_delta

MERCHANT = Merchant(id="shop-a", name="Shop A", data="/data", server="127.0.0.1:1", base="tiny")


def test_settings_and_policy_survive_their_files(tmp_path):
    policy = Policy.for_users(500, epsilon_limit=4.0, epsilon_per_run=2.0, personal=False)
    MERCHANT.save(tmp_path)
    policy.save(tmp_path)
    assert Merchant.load(tmp_path) == MERCHANT
    assert Policy.load(tmp_path) == policy


@given(st.integers(1, 10**7))
def test_the_number_made_known_has_two_digits_and_is_never_too_large(users):
    policy = Policy.for_users(users)
    assert 1 <= policy.users <= max(1, users * 0.9)
    assert policy.users >= users * 0.9 * 0.89 - 1
    assert len(str(policy.users).rstrip("0")) <= 2
    assert policy.delta == default_delta(policy.users)


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"epsilon_limit": math.inf}, "epsilon_limit"),
        ({"epsilon_limit": math.nan}, "epsilon_limit"),
        ({"epsilon_limit": 1.0, "epsilon_per_run": 2.0}, "epsilon_per_run"),
        ({"epsilon_per_run": 0.0}, "epsilon_per_run"),
        ({"delta": 0.0}, "delta"),
        ({"delta": 1.0}, "delta"),
        ({"delta": 0.2}, "delta"),
        ({"users": 0}, "users"),
        ({"max_sampling_rate": 0.0}, "max_sampling_rate"),
        ({"max_sampling_rate": 1.5}, "max_sampling_rate"),
        ({"lost_ledger_head": "ab12"}, "lost_ledger_head"),
        ({"held_out": 0.0}, "held_out"),
        ({"held_out": 1.0}, "held_out"),
        ({"software": "sha256:12"}, "software"),
        ({"base": "latest"}, "base"),
    ],
)
def test_a_policy_that_promises_nothing_is_refused(wrong, named):
    with pytest.raises(InputError, match=named):
        Policy(**{"users": 100, "delta": 1e-3, **wrong})


@pytest.mark.parametrize(
    ("old", "new", "match"),
    [
        ("min_users = 50", "min_user = 50", r"policy\.toml: unknown key 'min_user'"),
        ("min_users = 50", "min_users = 'many'", r"policy\.toml: min_users"),
        ("personal = true", "personal = 1", r"policy\.toml: personal"),
        ("delta = ", "delta = = ", r"policy\.toml: "),
        ("epsilon_limit = 8.0", "epsilon_limit = 1.0", r"policy\.toml: .*epsilon_per_run"),
    ],
)
def test_an_edit_gone_wrong_names_the_file_and_the_key(tmp_path, old, new, match):
    Policy.for_users(500).save(tmp_path)
    path = tmp_path / "policy.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InputError, match=match):
        Policy.load(tmp_path)


def test_a_missing_file_says_what_to_do(tmp_path):
    with pytest.raises(MissingError, match="handbill client init"):
        Policy.load(tmp_path)
    with pytest.raises(MissingError, match="handbill client init"):
        Merchant.load(tmp_path)


def test_an_id_that_is_no_file_name_is_refused():
    with pytest.raises(InputError, match="id"):
        Merchant(id="../shop", name="", data="", server="", base="")


DIGESTS = {"software": "sha256:" + "a" * 64, "base": "sha256:" + "b" * 64}


@pytest.mark.parametrize("name", DIGESTS)
def test_a_policy_that_names_software_or_base_allows_no_other(name):
    other = "sha256:" + "c" * 64
    assert Policy.for_users(500).check_installed(**DIGESTS) is None
    pinned = Policy.for_users(500, **DIGESTS)
    pinned.check_installed(**DIGESTS)
    with pytest.raises(PolicyError, match=f"{name} allows {DIGESTS[name]}, and {other}"):
        pinned.check_installed(**DIGESTS | {name: other})
