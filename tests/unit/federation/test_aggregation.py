"""Aggregation: the mean is the mean, a bad update changes nothing, the optimiser is Adam."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from handbill.errors import InputError, NonFiniteUpdateError, ProtocolError, RoundError
from handbill.federation.aggregation import MeanAccumulator, ServerOptimizer

SHAPES = {"b1": (4, 2), "b2": (3, 2)}
finite = st.floats(-1e3, 1e3, width=32)


@st.composite
def updates(draw):
    return {
        name: draw(arrays(np.float32, shape, elements=finite)) for name, shape in SHAPES.items()
    }


def accumulator(max_norm=1e9):
    return MeanAccumulator(SHAPES, max_norm=max_norm)


def ones(scale=1.0):
    return {name: np.full(shape, scale, np.float32) for name, shape in SHAPES.items()}


@given(st.lists(updates(), min_size=1, max_size=6))
def test_the_mean_is_numpys_mean(many):
    total = accumulator()
    for update in many:
        total.add(update)
    mean = total.mean()
    for name in SHAPES:
        expected = np.mean([u[name].astype(np.float64) for u in many], axis=0)
        partial = np.abs(np.cumsum([u[name].astype(np.float64) for u in many], axis=0)).max()
        np.testing.assert_allclose(mean[name], expected, rtol=0, atol=partial * 2**-23)
        assert mean[name].dtype == np.float32


@given(st.lists(updates(), min_size=2, max_size=5), st.randoms())
def test_the_order_of_arrival_does_not_matter(many, random):
    shuffled = list(many)
    random.shuffle(shuffled)
    means = []
    for some in (many, shuffled):
        total = accumulator()
        for update in some:
            total.add(update)
        means.append(total.mean())
    for name in SHAPES:
        np.testing.assert_allclose(means[0][name], means[1][name], rtol=0, atol=5e3 * 2**-22)


def test_a_thousand_updates_are_off_by_less_than_float32_allows():
    draws = np.random.default_rng(3)
    many = [
        {n: draws.normal(size=shape).astype(np.float32) for n, shape in SHAPES.items()}
        for _ in range(1000)
    ]
    total = accumulator()
    for update in many:
        total.add(update)
    for name, mean in total.mean().items():
        exact = np.mean([u[name].astype(np.float64) for u in many], axis=0)
        partial = np.abs(np.cumsum([u[name] for u in many], axis=0)).max()
        assert np.abs(mean - exact).max() < partial * 2**-24


def spoilt(name, value):
    update = ones()
    update[name] = value
    return update


BAD = {
    "nan": spoilt("b2", np.full((3, 2), np.nan, np.float32)),
    "inf": spoilt("b2", np.full((3, 2), np.inf, np.float32)),
    "one -inf": spoilt("b2", np.array([[0, 0], [0, -np.inf], [0, 0]], np.float32)),
    "shape": spoilt("b2", np.ones((2, 3), np.float32)),
    "broadcastable": spoilt("b2", np.ones((1, 2), np.float32)),
    "scalar": spoilt("b2", np.float32(1.0)),
    "float64": spoilt("b2", np.ones((3, 2), np.float64)),
    "float16": spoilt("b2", np.ones((3, 2), np.float16)),
    "int": spoilt("b2", np.ones((3, 2), np.int32)),
    "extra name": ones() | {"b3": np.ones((1, 1), np.float32)},
    "missing name": {"b1": ones()["b1"]},
    "empty": {},
    "too large": spoilt("b2", np.full((3, 2), 50.0, np.float32)),
    "huge": spoilt("b2", np.full((3, 2), 3e38, np.float32)),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD.keys())
def test_a_bad_update_is_refused_whole_and_the_sum_is_as_before(bad):
    total = accumulator(max_norm=100.0)
    total.add(ones(2.0))
    with pytest.raises(ProtocolError):
        total.add(bad)
    assert total.count == 1
    total.add(ones(4.0))
    for value in total.mean().values():
        np.testing.assert_array_equal(value, np.float32(3.0))


LONG = (3, 500_000)  # several pieces for every processor


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6], ids=["nan", "inf", "too large"])
@pytest.mark.parametrize("where", [0, 1_499_999, 700_000], ids=["first", "last", "middle"])
@pytest.mark.parametrize("earlier", [1, 2], ids=["from the start", "from the end"])
def test_what_was_added_of_a_bad_update_is_taken_back(value, where, earlier):
    draws = np.random.default_rng(where)
    good = [draws.standard_normal(LONG, np.float32) for _ in range(earlier)]
    total = MeanAccumulator({"b": LONG}, max_norm=1e4)
    for update in good:
        total.add({"b": update})
    bad = draws.standard_normal(LONG, np.float32)
    bad[1, 400_000] = 5e3  # within the norm: added, and taken back
    bad.reshape(-1)[where] = value
    kept = bad.copy()
    with pytest.raises(ProtocolError):
        total.add({"b": bad})
    np.testing.assert_array_equal(bad, kept)  # whose it is may look at it
    assert total.count == earlier
    exact = np.sum(good, axis=0, dtype=np.float64)
    off = np.abs(earlier * total.mean()["b"].astype(np.float64) - exact)
    added = np.where(np.isfinite(bad) & (bad != 1e6), np.abs(bad), 0)
    assert (off <= 2**-22 * (np.abs(exact) + added) + 1e-12).all()


@pytest.mark.parametrize("bad", ["nan", "inf", "one -inf"])
def test_what_is_not_finite_is_named_so(bad):
    with pytest.raises(NonFiniteUpdateError):
        accumulator().add(BAD[bad])


def test_the_norm_is_over_all_tensors_and_the_bound_itself_is_allowed():
    update = ones()  # 14 ones
    accumulator(max_norm=14**0.5).add(update)
    with pytest.raises(ProtocolError, match="larger"):
        accumulator(max_norm=14**0.5 - 1e-6).add(update)


def test_the_mean_of_nothing_is_refused():
    with pytest.raises(RoundError):
        accumulator().mean()


def test_after_the_mean_a_sum_begins_anew():
    total = accumulator()
    total.add(ones(2.0))
    first = total.mean()
    with pytest.raises(RoundError):
        total.mean()
    total.add(ones(5.0))
    second = total.mean()
    for name in SHAPES:
        np.testing.assert_array_equal(first[name], np.float32(2.0))
        np.testing.assert_array_equal(second[name], np.float32(5.0))


def test_memory_does_not_grow_with_the_number_of_updates():
    shapes = {"b": (512, 64)}
    size = 512 * 64 * 4

    def peak(count):
        total = MeanAccumulator(shapes, max_norm=1e9)
        tracemalloc.start()
        for n in range(count):
            total.add({"b": np.full((512, 64), n, np.float32)})
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    few, many = peak(4), peak(200)
    assert many < few + size  # not even one more update


def matrices(seed, *, frozen):
    """B (out, r) and A (r, in) of one merchant; A from one public seed when frozen."""
    own, public = np.random.default_rng(seed), np.random.default_rng(99)
    a = (public if frozen else own).standard_normal((2, 5)).astype(np.float32)
    return own.standard_normal((4, 2)).astype(np.float32), a


@pytest.mark.parametrize("frozen", [True, False])
def test_averaging_b_is_exact_in_dw_only_because_a_is_frozen(frozen):
    merchants = [matrices(seed, frozen=frozen) for seed in range(3)]
    total = MeanAccumulator({"b": (4, 2)}, max_norm=1e9)
    for b, _ in merchants:
        total.add({"b": b})
    mean_b, mean_a = total.mean()["b"], np.mean([a for _, a in merchants], axis=0)
    exact = np.mean([b.astype(np.float64) @ a for b, a in merchants], axis=0)
    error = np.abs(mean_b @ mean_a - exact).max()
    if frozen:
        assert error < 1e-6
    else:
        assert error > 0.1  # what averaging both halves apart would do


def test_the_first_fedadam_step_by_hand():
    optimizer = ServerOptimizer(learning_rate=0.1, momentum=0.9, second_momentum=0.99, epsilon=1e-8)
    weights = {"b": np.array([[1.0, -2.0, 0.0]], np.float32)}
    update = {"b": np.array([[0.5, -4.0, 0.0]], np.float32)}
    moved, state = optimizer.step(weights, update, optimizer.start(weights))
    # mean 0.1 u / 0.1 = u, spread sqrt(0.01 u^2 / 0.01) = |u|: a step of 0.1 towards u's sign
    np.testing.assert_allclose(moved["b"], [[1.1, -2.1, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(state.first["b"], [[0.05, -0.4, 0.0]], rtol=1e-6)
    np.testing.assert_allclose(state.second["b"], [[0.0025, 0.16, 0.0]], rtol=1e-5)
    assert state.steps == 1


@pytest.mark.parametrize("seed", range(3))
def test_fedadam_is_torchs_adam_on_the_pseudo_gradient(seed, random_update):
    optimizer = ServerOptimizer(learning_rate=0.05, decay=False)
    weights = random_update(SHAPES, seed)
    state = optimizer.start(weights)
    parameters = {n: torch.nn.Parameter(torch.from_numpy(w.copy())) for n, w in weights.items()}
    adam = torch.optim.Adam(parameters.values(), lr=0.05, betas=(0.9, 0.99), eps=1e-8)
    for number in range(1, 8):
        update = random_update(SHAPES, 100 * seed + number, scale=10.0**-number)
        weights, state = optimizer.at(number, of=7).step(weights, update, state)
        for name, parameter in parameters.items():
            parameter.grad = -torch.from_numpy(update[name])
        adam.step()
        for name, parameter in parameters.items():
            np.testing.assert_allclose(weights[name], parameter.detach(), rtol=2e-5, atol=1e-6)


def test_fedavg_adds_the_mean_and_fedavgm_a_running_mean_of_it():
    weights, first, second = ({"b": np.full((1, 1), v, np.float32)} for v in (1.0, 2.0, 4.0))
    plain = ServerOptimizer(kind="fedavg", learning_rate=0.5)
    moved, _ = plain.step(weights, first, plain.start(weights))
    assert moved["b"] == pytest.approx(1 + 0.5 * 2)
    heavy = ServerOptimizer(kind="fedavgm", learning_rate=0.5, momentum=0.9)
    moved, state = heavy.step(weights, first, heavy.start(weights))
    assert moved["b"] == pytest.approx(1 + 0.5 * 2)  # bias-corrected: not a tenth of it
    again, _ = heavy.step(moved, second, state)
    running = (0.9 * 0.1 * 2 + 0.1 * 4) / (1 - 0.9**2)
    assert again["b"] == pytest.approx(2 + 0.5 * running)


@pytest.mark.parametrize("kind", ["fedavg", "fedavgm", "fedadam"])
def test_a_step_leaves_its_arguments_alone(kind, random_update):
    optimizer = ServerOptimizer(kind=kind)
    weights, update = random_update(SHAPES, 1), random_update(SHAPES, 2)
    state = optimizer.start(weights)
    _, state = optimizer.step(weights, update, state)
    before = [{n: v.copy() for n, v in d.items()} for d in (weights, update, state.first)]
    optimizer.step(weights, update, state)
    for old, new in zip(before, (weights, update, state.first), strict=True):
        for name in SHAPES:
            np.testing.assert_array_equal(old[name], new[name])


def test_the_rate_falls_on_a_line_and_only_if_asked_to():
    falling = ServerOptimizer(learning_rate=0.4)
    rates = [falling.at(n, of=4).learning_rate for n in (1, 2, 3, 4)]
    assert rates == pytest.approx([0.4, 0.3, 0.2, 0.1])
    flat = ServerOptimizer(learning_rate=0.4, decay=False)
    assert flat.at(4, of=4) is flat


@pytest.mark.parametrize("wrong", [{"kind": "sgd"}, {"learning_rate": 0.0}, {"learning_rate": -1}])
def test_an_optimiser_that_cannot_be_is_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ServerOptimizer(**wrong)
