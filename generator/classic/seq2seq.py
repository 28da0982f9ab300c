"""Sequence to sequence with attention and copying: the product's fields in, copy out.

A bidirectional GRU reads the fields. A GRU writes, looks back at them by Luong's general attention (2015,
arXiv:1508.04025) and at each token either takes one of the vocabulary or points at one of the fields, by the gate of
See et al. (2017, arXiv:1704.04368).

Axes: B rows, S tokens of the fields, T tokens of copy, E embedding, H hidden, V vocabulary, Z latent.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import log_softmax, softmax

from handbill.generator.echoes import without_echoes
from handbill.generator.mentions import Mentions, shift_rows

TINY = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How large; ``latent`` is for the autoencoder."""

    vocabulary: int
    embedding: int = 128
    hidden: int = 256
    latent: int = 0
    dropout: float = 0.2


@dataclass(frozen=True, slots=True)
class Pair:
    """Token ids of a product's fields and of copy; the copy ends with the end mark."""

    source: tuple[int, ...]
    target: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Read:
    """The fields as read.

    Attributes:
        states: Of each token, shape (B, S, H).
        mask: Where there is a token, (B, S).
        source: The tokens, (B, S).
        summary: Of a whole row, (B, H).
    """

    states: Tensor
    mask: Tensor
    source: Tensor
    summary: Tensor

    def repeated(self, n: int) -> "Read":
        """Each row ``n`` times in a row."""
        parts = (self.states, self.mask, self.source, self.summary)
        return Read(*(part.repeat_interleave(n, 0) for part in parts))


class Seq2Seq(nn.Module):
    """The network; ``latent_BZ`` is given where its size has a latent variable."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.size = size
        width = size.hidden
        self.embed = nn.Embedding(size.vocabulary, size.embedding)
        nn.init.normal_(self.embed.weight, std=size.embedding**-0.5)
        self.reader = nn.GRU(size.embedding, width // 2, batch_first=True, bidirectional=True)
        self.begin = nn.Linear(width + size.latent, width)
        self.writer = nn.GRU(size.embedding + size.latent, width, batch_first=True)
        self.look = nn.Linear(width, width, bias=False)
        self.mix = nn.Linear(2 * width, size.embedding)
        self.gate = nn.Linear(2 * width, 1)
        self.bias = nn.Parameter(torch.zeros(size.vocabulary))
        self.drop = nn.Dropout(size.dropout)

    def read(self, sources: Sequence[Sequence[int]]) -> Read:
        """Read the fields of a batch."""
        source_BS, mask_BS = padded(sources)
        lengths = mask_BS.sum(1)
        packed = nn.utils.rnn.pack_padded_sequence(
            self.drop(self.embed(source_BS)), lengths, batch_first=True, enforce_sorted=False
        )
        states, last_2BH = self.reader(packed)
        states_BSH, _ = nn.utils.rnn.pad_packed_sequence(states, batch_first=True)
        summary_BH = torch.cat([last_2BH[0], last_2BH[1]], -1)
        return Read(states_BSH, mask_BS, source_BS, summary_BH)

    def start(self, read: Read, latent_BZ: Tensor | None = None) -> Tensor:
        """The writer's first state, shape (1, B, H)."""
        given = [read.summary] if latent_BZ is None else [read.summary, latent_BZ]
        return torch.tanh(self.begin(torch.cat(given, -1)))[None]

    def parts(
        self, read: Read, tokens_BT: Tensor, state: Tensor, latent_BZ: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """After each token: logits (B, T, V), attention (B, T, S), chance of no copying (B, T), state."""
        inputs = self.drop(self.embed(tokens_BT))
        if latent_BZ is not None:
            inputs = torch.cat([inputs, latent_BZ[:, None].expand(-1, inputs.shape[1], -1)], -1)
        hidden_BTH, state = self.writer(inputs, state)
        scores_BTS = self.look(hidden_BTH) @ read.states.transpose(1, 2)
        scores_BTS = scores_BTS.masked_fill(~read.mask[:, None], -1e9)
        attention_BTS = softmax(scores_BTS, -1)
        both = torch.cat([hidden_BTH, attention_BTS @ read.states], -1)
        logits_BTV = self.drop(torch.tanh(self.mix(both))) @ self.embed.weight.T + self.bias
        return logits_BTV, attention_BTS, torch.sigmoid(self.gate(both))[..., 0], state

    def log_chances(
        self,
        read: Read,
        inputs_BT: Tensor,
        targets_BT: Tensor,
        latent_BZ: Tensor | None = None,
    ) -> Tensor:
        """Log-probability of each target token given those before it, shape (B, T)."""
        state = self.start(read, latent_BZ)
        logits_BTV, attention_BTS, gate_BT, _ = self.parts(read, inputs_BT, state, latent_BZ)
        own_BT = log_softmax(logits_BTV, -1).gather(-1, targets_BT[..., None])[..., 0].exp()
        same_BTS = targets_BT[..., None] == read.source[:, None]
        copied_BT = (attention_BTS * (same_BTS & read.mask[:, None])).sum(-1)
        return torch.log(gate_BT * own_BT + (1 - gate_BT) * copied_BT + TINY)

    def next_chances(
        self, read: Read, tokens_B: Tensor, state: Tensor, latent_BZ: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Probability of every next token, shape (B, V), and the state after it."""
        logits, attention, gate, state = self.parts(read, tokens_B[:, None], state, latent_BZ)
        own_BV = gate * softmax(logits[:, 0], -1)
        chances = own_BV.scatter_add(1, read.source, (1 - gate) * attention[:, 0])
        return chances, state

    @torch.no_grad()
    def sample(
        self,
        read: Read,
        *,
        end: int,
        longest: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        latent_BZ: Tensor | None = None,
        mentions: Sequence[Mentions] = (),
        repeatable: Collection[int] | None = None,
    ) -> list[list[int]]:
        """Write one text for each row, token ids without the end mark; from torch's random state.

        Args:
            read: The fields.
            end: The end mark.
            longest: Tokens of a text at most.
            temperature: Below 1, likely tokens become likelier.
            top_p: Draw from the likeliest tokens that together reach this probability.
            latent_BZ: Where the network has a latent variable.
            mentions: What each row has to say; changed.
            repeatable: Tokens of which a run may be followed by itself, such as digits; None for all.
        """
        rows = len(read.source)
        tokens_B = torch.full((rows,), end)
        state = self.start(read, latent_BZ)
        done_B = torch.zeros(rows, dtype=torch.bool)
        texts: list[list[int]] = [[] for _ in range(rows)]
        for _ in range(longest):
            chances_BV, state = self.next_chances(read, tokens_B, state, latent_BZ)
            scores_BV = shift_rows(torch.log(chances_BV + TINY), mentions)
            if repeatable is not None:
                scores_BV = without_echoes(scores_BV, texts, repeatable)
            chances_BV = _narrowed(scores_BV, temperature=temperature, top_p=top_p)
            tokens_B = torch.multinomial(chances_BV, 1)[:, 0].masked_fill(done_B, end)
            done_B = done_B | (tokens_B == end)
            for text, token, over in zip(texts, tokens_B.tolist(), done_B.tolist(), strict=True):
                if not over:
                    text.append(token)
            for row, token in zip(mentions, tokens_B.tolist(), strict=bool(mentions)):
                row.add(token)
            if bool(done_B.all()):
                break
        return texts


def padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Rows as one tensor padded with 0 on the right, and where there is something; none is empty."""
    width = max(1, *map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    mask = torch.tensor([[n < max(1, len(row)) for n in range(width)] for row in rows])
    return ids, mask


def shifted(targets: Sequence[Sequence[int]], *, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that begin with the end mark, targets, and where there is something; each (B, T)."""
    targets_BT, mask_BT = padded(targets)
    first = torch.full((len(targets), 1), end)
    return torch.cat([first, targets_BT[:, :-1]], 1), targets_BT, mask_BT


def _narrowed(scores_BV: Tensor, *, temperature: float, top_p: float) -> Tensor:
    """Chances, sharpened by the temperature, then only the likeliest tokens that make up ``top_p``."""
    chances_BV = softmax(scores_BV / temperature, -1)
    if top_p < 1.0:
        ranked, order = chances_BV.sort(-1, descending=True)
        ranked = ranked.masked_fill(ranked.cumsum(-1) - ranked >= top_p, 0.0)
        chances_BV = torch.zeros_like(chances_BV).scatter(1, order, ranked)
    return chances_BV


class Seq2SeqLearner:
    """Maximum likelihood, for :func:`handbill.generator.training.train`."""

    def __init__(self, network: Seq2Seq, *, end: int) -> None:
        self.module: nn.Module = network
        self.network, self.end = network, end

    def length(self, row: Pair) -> int:
        """Tokens of a row."""
        return len(row.source) + len(row.target)

    def loss(self, rows: Sequence[Pair], progress: float) -> Tensor:  # noqa: ARG002
        """Mean cross-entropy, nats a token of copy."""
        total, tokens = self._sum(rows)
        return total / tokens

    def held_out_loss(self, rows: Sequence[Pair]) -> tuple[float, int]:
        """Summed cross-entropy and tokens."""
        total, tokens = self._sum(rows)
        return float(total.detach()), tokens

    def _sum(self, rows: Sequence[Pair]) -> tuple[Tensor, int]:
        read = self.network.read([row.source for row in rows])
        inputs_BT, targets_BT, mask_BT = shifted([row.target for row in rows], end=self.end)
        log_BT = self.network.log_chances(read, inputs_BT, targets_BT)
        return -(log_BT * mask_BT).sum(), int(mask_BT.sum())
