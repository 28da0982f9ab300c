"""A generative adversarial network for text, and its discriminator as a critic of copy.

The generator is a seq2seq that maximum likelihood has brought near already. The discriminator is a convolutional
network over tokens (Kim 2014, arXiv:1408.5882). Tokens are drawn, so its verdict reaches the generator as a reward, by
the policy gradient of SeqGAN (Yu et al. 2017, arXiv:1609.05473) with the batch's mean as the baseline in the place of
roll-outs; likelihood stays part of the loss, without which such training comes apart.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from handbill.generator.classic.seq2seq import Pair, Seq2Seq, Seq2SeqLearner, padded, shifted

WARMING: Final = 0.4  # share of the training in which only the discriminator learns
REWARD: Final = 0.5  # weight of the verdict beside likelihood
CRITIC_RATE: Final = 4.0  # the discriminator's loss counts so much more than the generator's
_WIDTHS: Final = (1, 2, 3, 4, 5)
_EMBEDDING: Final = 64
_FILTERS: Final = 64


class Discriminator(nn.Module):
    """Tells copy that people wrote from a generator's; logits above 0 say people."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, _EMBEDDING)
        self.windows = nn.ModuleList(nn.Conv1d(_EMBEDDING, _FILTERS, w) for w in _WIDTHS)
        self.drop = nn.Dropout(0.25)
        self.verdict = nn.Linear(_FILTERS * len(_WIDTHS), 1)

    def forward(self, texts: Sequence[Sequence[int]]) -> Tensor:
        """Logits of texts given as token ids, shape (B,)."""
        ids_BT, mask_BT = padded(texts)
        short = max(_WIDTHS) - ids_BT.shape[1]
        embedded_BET = (self.embed(ids_BT) * mask_BT[..., None]).transpose(1, 2)
        if short > 0:
            embedded_BET = nn.functional.pad(embedded_BET, (0, short))
        peaks = [torch.relu(window(embedded_BET)).amax(-1) for window in self.windows]
        logits: Tensor = self.verdict(self.drop(torch.cat(peaks, -1)))[:, 0]
        return logits


class Gan(nn.Module):
    """Generator and discriminator."""

    def __init__(self, network: Seq2Seq) -> None:
        super().__init__()
        self.size = network.size
        self.network = network
        self.discriminator = Discriminator(network.size.vocabulary)


class GanLearner:
    """Both players' losses in one, for :func:`handbill.generator.training.train`.

    Drawn tokens carry no gradient and a reward is a number, so neither loss reaches the other's weights.
    """

    def __init__(self, model: Gan, *, end: int, longest: int) -> None:
        self.module: nn.Module = model
        self.model, self.end, self.longest = model, end, longest
        self._likelihood = Seq2SeqLearner(model.network, end=end)

    def length(self, row: Pair) -> int:
        """Tokens of a row."""
        return len(row.source) + len(row.target)

    def loss(self, rows: Sequence[Pair], progress: float) -> Tensor:
        """Of the discriminator, and once it has warmed up also of the generator."""
        network = self.model.network
        network.eval()  # what is judged is what would be written: no dropout
        read = network.read([row.source for row in rows])
        drawn = network.sample(read, end=self.end, longest=self.longest)
        network.train()
        people = [row.target[:-1] for row in rows]
        logits = self.model.discriminator([*people, *drawn])
        truth = torch.tensor([1.0] * len(rows) + [0.0] * len(drawn))
        verdicts = CRITIC_RATE * binary_cross_entropy_with_logits(logits, truth)
        if progress < WARMING:
            return verdicts
        reward_B = torch.sigmoid(logits[len(rows) :].detach())
        advantage_B = (reward_B - reward_B.mean()) / (reward_B.std() + 1e-3)
        inputs_BT, targets_BT, mask_BT = shifted([[*ids, self.end] for ids in drawn], end=self.end)
        read = network.read([row.source for row in rows])
        log_BT = network.log_chances(read, inputs_BT, targets_BT)
        policy = -(advantage_B[:, None] * log_BT * mask_BT).sum() / mask_BT.sum()
        return verdicts + REWARD * policy + self._likelihood.loss(rows, progress)

    def held_out_loss(self, rows: Sequence[Pair]) -> tuple[float, int]:
        """Summed cross-entropy of the generator and tokens; the game itself has no loss that falls."""
        return self._likelihood.held_out_loss(rows)

    @torch.no_grad()
    def told_apart(self, rows: Sequence[Pair]) -> float:
        """Share of people's and drawn texts that the discriminator tells right, on these rows."""
        self.module.eval()
        right = 0
        for at in range(0, len(rows), 32):
            some = rows[at : at + 32]
            read = self.model.network.read([row.source for row in some])
            drawn = self.model.network.sample(read, end=self.end, longest=self.longest)
            people = self.model.discriminator([row.target[:-1] for row in some]) > 0
            right += int(people.sum()) + int((self.model.discriminator(drawn) <= 0).sum())
        return right / (2 * len(rows))
