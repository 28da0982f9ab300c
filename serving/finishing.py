"""What is done to copy after it was written and checked: chosen, polished, explained.

Choosing and polishing run on another thread; an explanation is a batch of texts that the engine scores.
"""

import asyncio
from collections.abc import Sequence as Items
from contextlib import aclosing
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from typing import Any

from handbill.generator.claims.checker import blocks
from handbill.generator.copies import Copy
from handbill.generator.explain import explanation, parts_of
from handbill.generator.fidelity import attribute_coverage
from handbill.generator.mentions import spellings
from handbill.generator.polish import polish
from handbill.generator.prompts import CopyRequest, Prompt, plain_ids
from handbill.generator.rerank import Weights, choose
from handbill.generator.scenario_rules import facts_of, fits
from handbill.generator.scenarios import Scenarios
from handbill.generator.sentiment import SentimentModel
from handbill.serving.checking import Check, findings_as_facts
from handbill.serving.copy_body import CopyBody
from handbill.serving.errors import BadRequestError, UnavailableError
from handbill.serving.sequences import Delta, Engine, Sampling, Sequence
from handbill.serving.streams import merge
from handbill.serving.tracing import carried

# All that may be chosen passed the check, which knows what this tenant may say.
_WEIGHTS = Weights(lawful=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finishing:
    """What one request wants done to its copy.

    Attributes:
        body: The request.
        product: The same as the generator is asked.
        prompt: What the copy is written after.
        scenarios: The caller's.
        engine: Scores.
        tokenizer: The engine's.
        sentiment: Tells the tone of candidates, if the service has one.
        check: Finds what is wrong with a text.
    """

    body: CopyBody
    product: CopyRequest
    prompt: Prompt
    scenarios: Scenarios
    engine: Engine
    tokenizer: Any
    sentiment: SentimentModel | None
    check: Check

    @property
    def usual_tokens(self) -> int:
        """The longest answer of the scenario, where the request does not say."""
        return self.scenarios.get(self.product.scenario).max_tokens

    def guided(self, sampling: Sampling) -> Sampling:
        """The same settings, where the request insists on the attributes."""
        if not self.body.insist:
            return sampling
        values = dict.fromkeys(self.body.attributes.values())
        phrases = tuple(spellings(self.tokenizer, value) for value in values)
        return replace(sampling, phrases=phrases, insist=self.body.insist)

    def most_tokens(self, *, prompt: int, answers: int, longest: int) -> int:
        """The most tokens it runs beside the answers."""
        if not self.body.explain:
            return 0
        return answers * (len(parts_of(self.prompt)) + 1) * (prompt + longest)

    async def chosen(self, passed: Items[Delta], answers: int) -> list[Delta]:
        """The best of the candidates that passed the check, the best first."""
        return await asyncio.to_thread(self._choose, passed, answers)

    async def finished(self, delta: Delta, *, tenant: str, adapter: str) -> Delta:
        """A piece of copy as it is served."""
        if self.body.polish:
            delta = await asyncio.to_thread(self._polish, delta)
        if self.body.explain:
            delta = await self._explain(delta, tenant, adapter)
        return delta

    def covers(self, text: str) -> float | None:
        """The share of the product's attributes that a text states; None where none were given."""
        return attribute_coverage(self._copy(""), text)

    def _choose(self, passed: Items[Delta], answers: int) -> list[Delta]:
        passed = [delta for delta in passed if delta.text] or passed
        tone = self.scenarios.tones.get(self.body.tone)
        ends = {delta.text: delta.finish_reason == "stop" for delta in passed}

        def fit(text: str) -> float:
            fitting = fits(text, self.product, scenarios=self.scenarios)
            return (float(fitting) + float(ends[text])) / 2

        ranked = choose(
            self._copy("", candidates=tuple(delta.text for delta in passed)),
            answers,
            sentiment=self.sentiment if tone else None,
            wanted=tone.sentiment if tone else 1.0,
            fit=fit,
            weights=_WEIGHTS,
        )
        return [
            passed[one.index].noted(
                chosen={
                    "candidates": self.body.candidates,
                    "passed": len(passed),
                    "score": round(one.score, 4),
                    "parts": {k: round(v, 4) for k, v in one.parts.items() if k != "lawful"},
                }
            )
            for one in ranked
        ]

    def _polish(self, delta: Delta) -> Delta:
        text, changes = polish(self._copy(delta.text))
        findings = self.check(text) if changes else []
        if changes and (blocks(findings) or len(findings) > len(delta.findings)):
            text, changes = delta.text, []
        if changes:
            delta = replace(delta, text=text, findings=findings_as_facts(findings, text))
        return delta.noted(polished=[asdict(change) for change in changes])

    async def _explain(self, delta: Delta, tenant: str, adapter: str) -> Delta:
        parts = parts_of(self.prompt)
        target = tuple(plain_ids(self.tokenizer, delta.text))
        prompts = [self.prompt, *(part.without for part in parts)]
        sequences = [
            Sequence(
                tenant=tenant,
                prompt=tuple(prompt.ids(self.tokenizer)),
                adapter=adapter,
                scored=target,
                trace=carried(),
            )
            for prompt in prompts
        ]
        found: dict[int, tuple[float, ...]] = {}
        async with aclosing(merge([self.engine.submit(one) for one in sequences])) as pieces:
            async for index, piece in pieces:
                found[index] = piece.logprobs
        if any(len(found.get(i, ())) != len(target) for i in range(len(prompts))):
            raise UnavailableError("This engine cannot explain copy.")
        whole, *without = (found[i] for i in range(len(prompts)))
        told = await asyncio.to_thread(
            explanation, self.tokenizer, delta.text, parts, whole, without
        )
        cost = sum(len(one.prompt) + len(target) for one in sequences)
        return replace(delta.noted(explanation=told), n_prompt_tokens=cost)

    def _copy(self, text: str, candidates: tuple[str, ...] = ()) -> Copy:
        return Copy(
            id="copy",
            text=text,
            request=facts_of(self.product, scenarios=self.scenarios),
            candidates=candidates,
            attributes=tuple(self.body.attributes.items()),
        )


def check_polish(body: CopyBody, scenarios: Scenarios) -> None:
    """Refuse to polish where that cannot be done.

    Raises:
        BadRequestError: English is to be polished, and harper-py is not installed.
    """
    if body.polish and scenarios.spoken(body.language) != "zh" and find_spec("harper") is None:
        raise BadRequestError(
            "polish: this service has no harper-py; the operator installs handbill[judge]",
            param="polish",
        )
