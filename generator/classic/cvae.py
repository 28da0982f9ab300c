"""Conditional variational autoencoder: one product, many ways of writing about it.

A latent variable of the copy (posterior) is learnt beside one that is guessed from the fields alone (prior; Sohn et
al. 2015). So that the writer does not learn to do without it (Bowman et al. 2016, arXiv:1511.06349): it has to tell
by itself which tokens the copy has, in any order (Zhao et al. 2017, arXiv:1703.10960); its noise and its divergence
come in little by little; some of it is free in each dimension (Kingma et al. 2016, arXiv:1606.04934); and of the tokens the
writer sees, some are hidden.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax

from handbill.generator.classic.seq2seq import Pair, Read, Seq2Seq, Size, padded, shifted

ANNEALED: Final = 0.4  # share of the training after which the divergence counts in full
NARROW: Final = -2.0  # log-variance that the posterior begins with
BAG: Final = 0.5  # weight of telling the copy's tokens
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
        self.posterior = nn.Linear(size.embedding + width, 2 * latent)  # no layer that saturates
        nn.init.constant_(self.posterior.bias[latent:], NARROW)
        self.bag = nn.Linear(latent + width, size.embedding)
        self.prior = nn.Sequential(nn.Linear(width, width), nn.Tanh(), nn.Linear(width, latent))

    def guessed(self, read: Read) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the prior, each (B, Z); its variance is 1, or it would grow to take any copy in."""
        mean_BZ: Tensor = self.prior(read.summary)
        return mean_BZ, torch.zeros_like(mean_BZ)

    def heard(self, read: Read, targets: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the posterior given the copy, each (B, Z)."""
        targets_BT, mask_BT = padded(targets)
        # A bag of the copy's tokens, scaled so that one token more or less can be heard.
        tokens_BTE = self.network.embed(targets_BT) * mask_BT[..., None]
        scale_B1 = (self.size.embedding / mask_BT.sum(1, keepdim=True)).sqrt()
        both = torch.cat([tokens_BTE.sum(1) * scale_B1, read.summary], -1)
        mean_BZ, spread_BZ = self.posterior(both).chunk(2, -1)
        return mean_BZ, spread_BZ.clamp(-6, 0)

    def bag_losses(self, read: Read, latent_BZ: Tensor, targets_BT: Tensor) -> Tensor:
        """Minus the log-chance of each token of the copy as one drawn from a bag, (B, T)."""
        inner_BE = torch.tanh(self.bag(torch.cat([latent_BZ, read.summary], -1)))
        log_BV = log_softmax(inner_BE @ self.network.embed.weight.T + self.network.bias, -1)
        return -log_BV.gather(1, targets_BT)


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
        counts = min(1.0, progress / ANNEALED)
        errors, bag, divergence_BZ, tokens = self._parts(rows, hide=HIDDEN, noise=counts)
        # A dimension's mean over the batch below what is free counts for nothing and pulls at nothing.
        counted = divergence_BZ.mean(0).clamp(min=FREE_NATS).sum() * len(rows)
        return (errors + BAG * bag + counts * counted) / tokens

    def held_out_loss(self, rows: Sequence[Pair]) -> tuple[float, int]:
        """The negative bound, and tokens: no less than the cross-entropy of the copy."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            errors, _, divergence_BZ, tokens = self._parts(rows, hide=0.0, noise=1.0)
        return float((errors + divergence_BZ.sum()).detach()), tokens

    @torch.no_grad()
    def latent_use(self, rows: Sequence[Pair]) -> dict[str, float]:
        """How far the latent variable is used, on these rows.

        Returns:
            ``active_units`` of ``units`` (Burda et al. 2016, arXiv:1509.00519), the divergence of
            posterior from prior, ``kl_nats`` a text, and ``latent_gain``: by how many nats a text is likelier
            after its own latent value than after another text's.
        """
        self.module.eval()
        means, divergences, gain = [], [], 0.0
        for at in range(0, len(rows), 32):
            some = rows[at : at + 32]
            read = self.model.network.read([row.source for row in some])
            targets = [row.target for row in some]
            mean_BZ, spread_BZ = self.model.heard(read, targets)
            prior_BZ, prior_spread_BZ = self.model.guessed(read)
            means.append(mean_BZ - prior_BZ)
            divergences.append(_divergence(mean_BZ, spread_BZ, prior_BZ, prior_spread_BZ).sum(-1))
            inputs_BT, targets_BT, mask_BT = shifted(targets, end=self.end)
            for latent_BZ, sign in ((mean_BZ, 1.0), (mean_BZ.roll(1, 0), -1.0)):
                log_BT = self.model.network.log_chances(read, inputs_BT, targets_BT, latent_BZ)
                gain += sign * float((log_BT * mask_BT).sum())
        active = (torch.cat(means).var(0) > ACTIVE).sum()
        return {
            "active_units": int(active),
            "units": self.model.size.latent,
            "kl_nats": round(float(torch.cat(divergences).mean()), 3),
            "latent_gain": round(gain / len(rows), 3),
        }

    def _parts(
        self, rows: Sequence[Pair], *, hide: float, noise: float
    ) -> tuple[Tensor, Tensor, Tensor, int]:
        network = self.model.network
        read = network.read([row.source for row in rows])
        targets = [row.target for row in rows]
        mean_BZ, spread_BZ = self.model.heard(read, targets)
        divergence_BZ = _divergence(mean_BZ, spread_BZ, *self.model.guessed(read))
        latent_BZ = mean_BZ + noise * torch.randn_like(mean_BZ) * (spread_BZ / 2).exp()
        inputs_BT, targets_BT, mask_BT = shifted(targets, end=self.end)
        if hide:
            hidden_BT = torch.rand(inputs_BT.shape) < hide
            inputs_BT = inputs_BT.masked_fill(hidden_BT, self.end)
        log_BT = network.log_chances(read, inputs_BT, targets_BT, latent_BZ)
        bag_BT = self.model.bag_losses(read, latent_BZ, targets_BT)
        errors, bag = -(log_BT * mask_BT).sum(), (bag_BT * mask_BT).sum()
        return errors, bag, divergence_BZ, int(mask_BT.sum())


def _divergence(mean: Tensor, spread: Tensor, prior: Tensor, prior_spread: Tensor) -> Tensor:
    """Kullback-Leibler divergence of two diagonal Gaussians by dimension, from log-variances."""
    return 0.5 * (
        prior_spread - spread + (spread.exp() + (mean - prior) ** 2) / prior_spread.exp() - 1
    )
