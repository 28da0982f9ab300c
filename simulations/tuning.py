"""Which recipe learns most at an epsilon? A search by simulated private training on public data.

Every trial trains the shops of a market together, as :mod:`handbill.simulations.arms` does, and is
measured on held-out shoppers. Training on a shopper again with other settings is free only where
nobody's privacy is at stake: the data must be public. The noise therefore has a seed here, the
same for all trials: what differs between two of them is the settings, not the luck of a draw.
"""

import hashlib
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import tomli_w

from handbill.errors import InputError, NonFiniteUpdateError
from handbill.privacy.noise import TestingNoise
from handbill.simulations.arms import Arms, Model, Settings, Shop, takes_part, varied
from handbill.simulations.study_file import open_study

if TYPE_CHECKING:
    from optuna import Study
    from optuna import Trial as Asked

# Name of a setting, as `varied` takes it: the least and the most tried, and whether by factors.
SPACE: Final[Mapping[str, tuple[float, float, bool]]] = {
    "rounds": (3, 10, False),
    "expected_users": (8, 48, True),
    "clipping_norm": (0.1, 2.0, True),
    "server_learning_rate": (3e-3, 1e-1, True),
    "server_momentum": (0.0, 0.95, False),
}
WHOLE: Final = ("rounds", "expected_users")
SHARES: Final = 10  # trials with other numbers of rounds are compared at tenths of their runs
RANDOM_TRIALS: Final = 6  # before the sampler has something to go by
ENOUGH: Final = 8  # trials that went to their end, for the importance of a setting to say anything


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One trial: its loss in nats a token, of one ``stopped`` early after the last round it came to.

    Attributes:
        number: From 0 on, of those that are done.
        values: The settings searched, by name.
        loss: On held-out rows, mean over shops; None where it was never finite.
        defaults: Whether it is the one without a change.
    """

    number: int
    values: dict[str, float]
    loss: float | None
    stopped: bool
    defaults: bool
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search came to.

    Attributes:
        trials: All that are done, in order.
        importance: Share of each setting in what sets the best trials apart; empty if too few.
        toml: The tables of ``server.toml`` with the best trial's settings.
        interrupted: Whether it was stopped by Ctrl-C.
    """

    trials: tuple[Tried, ...]
    importance: dict[str, float]
    toml: str
    interrupted: bool

    @property
    def ranking(self) -> list[Tried]:
        """The trials that went to their end, the best first."""
        return _ranking(self.trials)


class Tuning:
    """A search over the settings of shops that train one model together."""

    def __init__(
        self, model: Model, shops: Sequence[Shop], settings: Settings, *, seed: int, base: str
    ) -> None:
        """Keep the shops whose default policy allows the recipe.

        Args:
            model: What is trained.
            shops: A market of public data.
            settings: The defaults, which the first trial is of, and the epsilon.
            seed: Of what is tried and of the noise.
            base: What says which base model and adapter these are.

        Raises:
            InputError: No shop is large enough.
        """
        self.model, self.settings, self.seed = model, settings, seed
        self.shops = [s for s in shops if s.held_out and takes_part(s, settings.recipe)]
        users = settings.recipe.expected_users
        if not self.shops:
            raise InputError(f"no shop has enough shoppers to sample {users} in a step")
        digest = hashlib.sha256()
        for shop in self.shops:
            digest.update(repr((shop.id, shop.users, shop.held_out, shop.policy)).encode())
        self.facts = {"market": digest.hexdigest()[:16], "base": base, "seed": seed}
        self.facts |= {"epsilon": settings.epsilon}
        self.facts |= {f"recipe.{n}": value for n, value in asdict(settings.recipe).items()}
        self.facts |= {f"optimizer.{n}": value for n, value in asdict(settings.server).items()}

    def run(
        self,
        file: Path,
        *,
        trials: int,
        seconds: float = math.inf,
        on_trial: Callable[[Tried], None] = lambda _: None,
        on_round: Callable[[int, int, float], None] = lambda _number, _rounds, _loss: None,
    ) -> Found:
        """Do what is missing of so many trials; the defaults are the first.

        Args:
            file: Where the search is kept, and gone on with.
            trials: Finished ones in the file at the end.
            seconds: No trial is begun after so many.
            on_trial: Told of each one done.
            on_round: Told of each round in one: its number, of how many, and the held-out loss.

        Raises:
            InputError: The file is of something else.
        """
        started, interrupted = time.monotonic(), False
        self._on_round = on_round
        with open_study(file, self.facts) as study:
            while (done := len(_trials(study))) < trials and time.monotonic() - started < seconds:
                # A sampler for each trial: whoever goes on draws what would have come next.
                study.sampler = _sampler(self.seed, done)
                self._begin_with_defaults(study)
                try:
                    study.optimize(self._objective, n_trials=1)
                except KeyboardInterrupt:
                    interrupted = True
                    break
                on_trial(_trials(study)[-1])
            found = _trials(study)
            best = varied(self.settings, **next((t.values for t in _ranking(found)), {}))
            return Found(
                trials=tuple(found),
                importance=_importance(study),
                toml=tomli_w.dumps(
                    {"recipe": asdict(best.recipe), "optimizer": asdict(best.server)}
                ),
                interrupted=interrupted,
            )

    @property
    def defaults(self) -> dict[str, float]:
        """The settings searched, as they are without a search."""
        there = asdict(self.settings.recipe)
        there |= {f"server_{n}": value for n, value in asdict(self.settings.server).items()}
        return {name: there[name] for name in SPACE}

    def _objective(self, trial: "Asked") -> float:
        """Train, and give up between two rounds what is worse than the median of the others."""
        from optuna import TrialPruned

        settings = varied(self.settings, **_short(self._ask(trial)))
        arms, rounds = Arms(self.model, self.shops, settings), settings.recipe.rounds
        arms.noise = TestingNoise(self.seed, i_know_this_is_not_private=True)
        spared = "defaults" in trial.user_attrs  # what all others are compared with
        try:
            for number, weights in enumerate(arms.together(), start=1):
                loss = statistics.fmean(arms.loss(shop, weights) for shop in self.shops)
                if not math.isfinite(loss):
                    raise TrialPruned
                trial.set_user_attr("loss", loss)
                self._on_round(number, rounds, loss)
                if number == rounds:
                    return loss
                first, *later = _shares(number, rounds)
                trial.report(loss, first)
                if trial.should_prune() and not spared:
                    raise TrialPruned
                for share in later:
                    trial.report(loss, share)
        except NonFiniteUpdateError as error:
            raise TrialPruned from error
        raise InputError("a search needs at least one round")

    def _ask(self, trial: "Asked") -> dict[str, float]:
        values: dict[str, float] = {}
        for name, (low, high, log) in SPACE.items():
            least, most, default = low, high, self.defaults[name]
            if name == "expected_users":  # so that no shop's policy refuses
                most = min(most, *(s.policy.users * s.policy.max_sampling_rate for s in self.shops))
            least, most = min(least, default), max(most, default)
            if name in WHOLE:
                values[name] = trial.suggest_int(name, int(least), int(most), log=log)
            else:
                values[name] = trial.suggest_float(name, least, most, log=log)
        return values

    def _begin_with_defaults(self, study: "Study") -> None:
        from optuna.trial import TrialState

        kept = (TrialState.COMPLETE, TrialState.WAITING)
        if not any("defaults" in t.user_attrs for t in study.get_trials(states=kept)):
            study.enqueue_trial(self.defaults, user_attrs={"defaults": True})


def _trials(study: "Study") -> list[Tried]:
    from optuna.trial import TrialState

    ended = study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))
    return [
        Tried(
            number=number,
            values=_short(trial.params),
            loss=trial.user_attrs.get("loss"),
            stopped=trial.state == TrialState.PRUNED,
            defaults="defaults" in trial.user_attrs,
            seconds=trial.duration.total_seconds() if trial.duration else 0.0,
        )
        for number, trial in enumerate(ended)
    ]


def _ranking(trials: Sequence[Tried]) -> list[Tried]:
    ended = [trial for trial in trials if not trial.stopped]
    return sorted(ended, key=lambda trial: (trial.loss, trial.number))


def _sampler(seed: int, done: int) -> Any:
    from optuna.samplers import TPESampler

    own = int(np.random.SeedSequence([seed, done]).generate_state(1)[0])
    return TPESampler(n_startup_trials=RANDOM_TRIALS, seed=own, constant_liar=False)


def _shares(number: int, rounds: int) -> Iterator[int]:
    """The tenths of a run from one round's end to before the next one's; one at least."""
    first = math.ceil(SHARES * number / rounds)
    yield from range(first, max(first + 1, math.ceil(SHARES * (number + 1) / rounds)))


def _short(values: Mapping[str, float]) -> dict[str, float]:
    """Three digits of each value: what is trained with is what people read and paste."""
    return {n: v if n in WHOLE else float(f"{v:.3g}") for n, v in values.items()}


def _importance(study: "Study") -> dict[str, float]:
    """By PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255), which takes no time."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances
    from optuna.trial import TrialState

    if len({t.value for t in study.get_trials(states=(TrialState.COMPLETE,))}) < ENOUGH:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optuna calls it experimental
        return get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
