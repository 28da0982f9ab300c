"""Conditional variational autoencoder: one product, many ways of writing about it.

A latent variable of the copy (posterior) is learnt beside one that is guessed from the fields alone (prior; Sohn et
al. 2015). So that the writer does not learn to do without it (Bowman et al. 2016, arXiv:1511.06349): the divergence
counts for little at first, some of it is free in each dimension (Kingma et al. 2016, arXiv:1606.04934), and of the
tokens it writes after some are hidden from it.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn

from handbill.generator.classic.seq2seq import Pair, Read, Seq2Seq, Size, padded, shifted

ANNEALED: Final = 0.4  # share of the training after which the divergence counts in full
FREE_NATS: Final = 0.15  # of each dimension
HIDDEN: Final = 0.25  # of the tokens the writer sees
ACTIVE: Final = 0.01  # variance of the posterior's mean from which a unit is in use


class Cvae(nn.Module):
    """A seq2seq with a latent variable, its posterior and its prior."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        self.network = Seq2Seq(size)
        width, latent = size.hidden, size.latent
        self.hear = nn.GRU(size.embedding, width // 2, batch_first=True, bidirectional=True)
        self.posterior = nn.Linear(2 * width, 2 * latent)
        self.prior = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 2 * latent))

    def guessed(self, read: Read) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the prior, each (B, Z)."""
        mean_BZ, spread_BZ = self.prior(read.summary).chunk(2, -1)
        return mean_BZ, spread_BZ.clamp(-6, 2)

    def heard(self, read: Read, targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior given the copy, each (B, Z)."""
        targets_BT, mask_BT = padded(targets)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.network.embed(targets_BT), mask_BT.sum(1), batch_first=True, enforce_sorted=False
        )
        _, last_2BH = self.hear(packed)
        both = torch.cat([last_2BH[0], last_2BH[1], read.summary], -1)
        mean_BZ, spread_BZ = self.posterior(both).chunk(2, -1)
        return mean_BZ, spread_BZ.clamp(-6, 2)


class CvaeLearner:
    """The evidence lower bound, for :func:`handbill.generator.training.train`."""

    def __init__(self, model: Cvae, *, end: int) -> None:
        self.module: nn.Module = model
        self.model, self.end = model, end

    def length(self, row: Pair) -> int:
        """Tokens of a row."""
        return len(row.source) + len(row.target)

    def loss(self, rows: Sequence[Pair], progress: float) -> Tensor:
        """Cross-entropy and divergence, nats a token; annealed, with free nats."""
        errors, divergence_BZ, tokens = self._parts(rows, hide=HIDDEN)
        # A dimension's mean over the batch below what is free counts for nothing and pulls at nothing.
        counted = divergence_BZ.mean(0).clamp(min=FREE_NATS).sum() * len(rows)
        return (errors + min(1.0, progress / ANNEALED) * counted) / tokens

    def held_out_loss(self, rows: Sequence[Pair]) -> tuple[float, int]:
        """The negative bound, and tokens: no less than the cross-entropy of the copy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            errors, divergence_BZ, tokens = self._parts(rows, hide=0.0)
        return float(errors + divergence_BZ.sum()), tokens

    @torch.no_grad()
    def latent_use(self, rows: Sequence[Pair]) -> dict[str, float]:
        """How far the latent variable is used, on these rows.

        Returns:
            ``active_units`` of ``units`` (Burda et al. 2016, arXiv:1509.00519) and the divergence of
            posterior from prior, ``kl_nats`` a text.
        """
        self.module.eval()
        means, divergences = [], []
        for at in range(0, len(rows), 32):
            some = rows[at : at + 32]
            read = self.model.network.read([row.source for row in some])
            mean_BZ, spread_BZ = self.model.heard(read, [row.target for row in some])
            prior_BZ, prior_spread_BZ = self.model.guessed(read)
            means.append(mean_BZ - prior_BZ)
            divergences.append(_divergence(mean_BZ, spread_BZ, prior_BZ, prior_spread_BZ).sum(-1))
        active = (torch.cat(means).var(0) > ACTIVE).sum()
        return {
            "active_units": int(active),
            "units": self.model.size.latent,
            "kl_nats": round(float(torch.cat(divergences).mean()), 3),
        }

    def _parts(self, rows: Sequence[Pair], *, hide: float) -> tuple[Tensor, Tensor, int]:
        network = self.model.network
        read = network.read([row.source for row in rows])
        targets = [row.target for row in rows]
        mean_BZ, spread_BZ = self.model.heard(read, targets)
        divergence_BZ = _divergence(mean_BZ, spread_BZ, *self.model.guessed(read))
        latent_BZ = mean_BZ + torch.randn_like(mean_BZ) * (spread_BZ / 2).exp()
        inputs_BT, targets_BT, mask_BT = shifted(targets, end=self.end)
        if hide:
            hidden_BT = torch.rand(inputs_BT.shape) < hide
            inputs_BT = inputs_BT.masked_fill(hidden_BT, self.end)
        log_BT = network.log_chances(read, inputs_BT, targets_BT, latent_BZ)
        return -(log_BT * mask_BT).sum(), divergence_BZ, int(mask_BT.sum())


def _divergence(mean: Tensor, spread: Tensor, prior: Tensor, prior_spread: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two diagonal Gaussians by dimension, from log-variances."""
    return 0.5 * (
        prior_spread - spread + (spread.exp() + (mean - prior) ** 2) / prior_spread.exp() - 1
    )
