"""What the registry holds, for people: models with what they promise, where they come from."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from handbill.errors import InputError, MissingError
from handbill.generator.model_specs import Trains, held
from handbill.server.records import Artifact, Publication
from handbill.server.registry import Registry


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """An artifact and the channels that serve it now, such as ``everyone`` or ``shop-a``.

    Attributes:
        removed: Its files are gone: pruned, or its tenant was forgotten.
    """

    artifact: Artifact
    served: tuple[str, ...]
    removed: bool

    @property
    def trains(self) -> Trains:
        """Return what it is: an adapter for copy, or a model of interest."""
        return held(self.artifact.manifest["files"])

    @property
    def round(self) -> int:
        """Return the round it came from; 0 for a tenant's own adapter outside rounds."""
        return int(self.artifact.manifest["round"])

    @property
    def metrics(self) -> dict[str, float]:
        """Return what was measured before it was signed."""
        return dict(self.artifact.manifest["metrics"])

    @property
    def privacy(self) -> list[dict[str, Any]]:
        """Return the DP statements, one per contributing merchant."""
        return list(self.artifact.manifest["privacy"])

    @property
    def epsilons(self) -> tuple[float, float] | None:
        """Return the smallest and largest epsilon of its merchants; None if nothing is stated."""
        found = [float(s["epsilon"]) for s in self.privacy if "epsilon" in s]
        return (min(found), max(found)) if found else None

    def to_dict(self) -> dict[str, Any]:
        """Return the facts as JSON prints them."""
        facts = {
            "served": list(self.served),
            "removed": self.removed,
            "epsilons": self.epsilons,
            "trains": self.trains,
        }
        return asdict(self.artifact) | facts


def models(registry: Registry) -> list[Model]:
    """Return every model: the global ones first, then by tenant, by version."""
    with registry.database.begin() as uow:
        found = uow.artifacts.all()
        newest = {t: uow.channels.history(t)[-1] for t in uow.channels.tenants()}
    return [
        Model(
            artifact=artifact,
            served=tuple(
                whom for step in newest.values() for whom in _served(step, artifact.digest)
            ),
            removed=artifact.digest not in registry.store,
        )
        for artifact in found
    ]


def find(registry: Registry, name: str, *, tenant: str = "") -> Model:
    """Return one model.

    Args:
        registry: Where to look.
        name: ``latest``, the newest adapter, a version (``3`` or ``v3``), or a digest or its first 6 or more digits.
        tenant: Whose versions are meant; the global ones if empty.

    Raises:
        MissingError: none is so called.
        InputError: more than one digest begins so.
    """
    known = models(registry)
    own = [model for model in known if model.artifact.tenant == tenant]
    whose = f"tenant {tenant}" if tenant else "everyone"
    if name == "latest":
        adapters = [model for model in own if model.trains == "copy"]
        if not adapters:
            raise MissingError(f"there is no model for {whose} yet")
        return adapters[-1]
    if version := re.fullmatch(r"v?(\d{1,5})", name):
        for model in own:
            if model.artifact.version == int(version[1]):
                return model
        raise MissingError(
            f"there is no version {version[1]} for {whose}; see handbill models list"
        )
    prefix = "sha256:" + name.removeprefix("sha256:")
    matching = [m for m in known if m.artifact.digest.startswith(prefix)]
    if len(prefix) < len("sha256:") + 6 or not matching:
        raise MissingError(f"no model {name[:80]!r}; see handbill models list")
    if len(matching) > 1:
        raise InputError(f"{name!r} begins {len(matching)} digests; give more digits")
    return matching[0]


def lineage(registry: Registry, model: Model) -> list[Artifact]:
    """Return the model and what it grew from, newest first; the base model comes before the last."""
    known = {found.artifact.digest: found.artifact for found in models(registry)}
    line = [model.artifact]
    while (parent := known.get(line[-1].manifest["parent"])) is not None:
        line.append(parent)
    return line


def statement_in_words(statement: Mapping[str, Any]) -> str:
    """Return one merchant's DP statement (:mod:`handbill.privacy.statement`) in plain words."""
    who = statement.get("merchant") or "one merchant"
    epsilon, delta = float(statement["epsilon"]), float(statement["delta"])
    if epsilon == 0:
        return f"{who}: nothing was learnt from its shoppers (epsilon 0)."
    after = f" after {statement['rounds']} rounds" if "rounds" in statement else ""
    steps = f" and {statement['steps']} private steps" if after and "steps" in statement else ""
    words = (
        f"{who}: whatever the server or other merchants do, what can be learnt about one of its "
        f"shoppers from all it ever sent is bounded by epsilon = {epsilon:.2f} "
        f"(delta = {delta:.1e}){after}{steps}. This holds for one shopper of one merchant."
    )
    if left_out := _sequence(statement.get("does_not_cover")):
        words += f" Not covered: {', '.join(left_out)}."
    return words


def _sequence(value: object) -> Sequence[str]:
    return [str(item) for item in value] if isinstance(value, list | tuple) else []


def _served(step: Publication, digest: str) -> list[str]:
    """Who is served an artifact from this step on, with the share where it is not all."""
    whom = step.tenant or "everyone"
    if not step.candidate:
        return [whom] if digest == step.served else []
    shares = {step.served: 100 - step.percent, step.candidate: step.percent}
    return [f"{whom} ({shares[digest]} %)"] if digest in shares else []
