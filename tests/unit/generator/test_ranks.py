"""What decisions 13 and 18 rest on: with A frozen, updates average and add exactly."""

import numpy as np

from handbill.generator.adapters import AdapterSpec, fixed_projections, trained_shapes

RANKS = (1, 3, 8)


def specs():
    return [AdapterSpec(rank=rank, alpha=2.0 * rank, layers=(0, 1)) for rank in RANKS]


def test_the_a_of_a_smaller_rank_is_the_beginning_of_the_greater(tiny_base):
    *smaller, whole = (fixed_projections(spec, tiny_base) for spec in specs())
    for rank, some in zip(RANKS, smaller, strict=False):
        for name, value in some.items():
            np.testing.assert_array_equal(value, whole[name][:rank])


def test_the_mean_of_padded_updates_is_the_mean_of_the_changes_to_the_model(
    tiny_base, random_update
):
    changes, padded = [], []
    for seed, spec in enumerate(specs()):
        update = random_update(trained_shapes(spec, tiny_base), seed)
        a = fixed_projections(spec, tiny_base)
        pairs = zip(sorted(update), sorted(a), strict=True)
        changes.append([spec.alpha / spec.rank * update[b] @ a[name] for b, name in pairs])
        room = max(RANKS) - spec.rank
        padded.append({b: np.pad(value, ((0, 0), (0, room))) for b, value in update.items()})
    whole = specs()[-1]
    a = fixed_projections(whole, tiny_base)
    for n, (b, name) in enumerate(zip(sorted(padded[0]), sorted(a), strict=True)):
        mean = np.mean([update[b] for update in padded], axis=0)
        told = whole.alpha / whole.rank * mean @ a[name]
        np.testing.assert_allclose(told, np.mean([c[n] for c in changes], axis=0), atol=1e-5)


def test_an_own_adapter_is_what_joining_its_ranks_to_the_global_one_would_give(
    tiny_base, random_update
):
    """Decision 19: the server adds a shop's update to the global B, and seals the sum."""
    spec = specs()[-1]
    everyones, shops = (random_update(trained_shapes(spec, tiny_base), seed) for seed in (1, 2))
    for name, a in fixed_projections(spec, tiny_base).items():
        b = name.replace(".lora_A.", ".lora_B.")
        own = (everyones[b] + shops[b]).astype(np.float32)
        joined = np.hstack([everyones[b], shops[b]]) @ np.vstack([a, a])  # twice the rank
        np.testing.assert_allclose(own @ a, joined, atol=1e-4)
