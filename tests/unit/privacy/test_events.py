import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.errors import InputError
from handbill.privacy.events import PrivateSteps, merge

events = st.builds(
    PrivateSteps,
    noise_multiplier=st.floats(1e-3, 1e3),
    sampling_rate=st.floats(1e-9, 1.0),
    steps=st.integers(1, 10**6),
)


@given(events)
def test_an_event_survives_its_canonical_text_exactly(event):
    assert PrivateSteps.from_json(event.to_json()) == event
    assert PrivateSteps.from_json(event.to_json()).to_json() == event.to_json()


def test_one_value_has_one_text():
    one = PrivateSteps(noise_multiplier=1, sampling_rate=1, steps=3)
    assert one.to_json() == ('{"noise_multiplier":1.0,"sampling_rate":1.0,"steps":3,"unit":"user"}')


@given(st.lists(events, max_size=6))
def test_merging_keeps_all_steps_and_forgets_order(some):
    assert sum(event.steps for event in merge(some)) == sum(event.steps for event in some)
    assert merge(some) == merge(some[::-1]) == merge(merge(some))


@pytest.mark.parametrize(
    "wrong",
    [
        {"noise_multiplier": 0.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": "1"},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.01},
        {"sampling_rate": True},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"unit": "example"},
    ],
)
def test_what_is_no_private_step_is_refused(wrong):
    with pytest.raises(InputError):
        PrivateSteps(**{"noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 1} | wrong)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"steps":1}', '{"x":1}', "null", "3"])
def test_other_text_is_no_event(text):
    with pytest.raises(InputError):
        PrivateSteps.from_json(text)
