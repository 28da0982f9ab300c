"""The body of a request for copy."""

from typing import Annotated, ClassVar, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from handbill.generator.prompts import CopyRequest
from handbill.generator.scenarios import Scenarios
from handbill.serving.config import ServingConfig
from handbill.serving.errors import BadRequestError
from handbill.serving.feedback.bodies import ShopperKey
from handbill.serving.requests import Field200, Generation

MAX_EVENTS: Final = 20
MAX_REVIEWS: Final = 20
MAX_ATTRIBUTES: Final = 32
_Short = Annotated[str, Field(min_length=1, max_length=80)]
_Review = Annotated[str, Field(min_length=1, max_length=1000)]


class RecentEvent(BaseModel):
    """One thing the shopper did just now; ``text`` is a product's name, or what was searched for."""

    model_config = ConfigDict(extra="forbid", strict=True)
    kind: Literal["view", "search", "cart", "purchase"]
    text: Annotated[str, Field(min_length=1, max_length=200)]


class CopyBody(Generation):
    """``/v1/copy``: a product, perhaps a shopper, and how many pieces of copy.

    Attributes:
        attributes: dict[_Short, Field200] = Field(default_factory=dict, max_length=MAX_ATTRIBUTES)
        events: What the shopper did just now, the newest last.
        insist: How much likelier the values of attributes become while the copy lacks them, in nats.
        candidates: How many pieces are written of which the best ``n`` are served.
        polish: Mend grammar and marks, never facts.
        explain: Say what of the prompt each piece of copy comes from.
        label: Where the words that say "made by a machine" stand in the text itself.
        review: Keep copy that is blocked for a person of the tenant's.
        feedback: Keep request and text with the copy's id, locked, to learn from what shoppers do
            with it. Without ``review`` and ``feedback`` no text is kept.
        shopper_key: Stands for the shopper the copy is for; only events of the same are taken.
        experiment: Id of an experiment whose variant of this shopper decides what it varies.
    """

    DEFAULT_TEMPERATURE: ClassVar[float] = 0.7
    DEFAULT_TOP_P: ClassVar[float] = 0.9
    DEFAULT_PENALTY: ClassVar[float] = 1.1

    title: Annotated[str, Field(max_length=500)]
    description: Annotated[str, Field(max_length=4000)] = ""
    category: Field200 = ""
    brand: Field200 = ""
    price: Field200 = ""
    attributes: dict[_Short, Field200] = Field(default_factory=dict, max_length=MAX_ATTRIBUTES)
    shopper: Annotated[str, Field(max_length=4000)] = ""
    events: list[RecentEvent] = Field(default_factory=list, max_length=MAX_EVENTS)
    question: Annotated[str, Field(max_length=1000)] = ""
    reviews: list[_Review] = Field(default_factory=list, max_length=MAX_REVIEWS)
    scenario: Field200 = "recommendation_reason"
    tone: Field200 = ""
    language: Field200 = "en"
    insist: float = 0.0
    candidates: Annotated[int, Field(ge=1)] | None = None
    polish: bool = False
    explain: bool = False
    label: Literal["none", "start", "end"] = "none"
    review: bool = False
    feedback: bool = False
    shopper_key: ShopperKey | Literal[""] = ""
    experiment: Annotated[str, Field(max_length=32)] = ""

    @property
    def written_for(self) -> str:
        """The shopper, else as for every text."""
        return self.shopper_key or super().written_for

    def rows(self, config: ServingConfig) -> int:
        """How many pieces are written at once to be chosen from; 0 where none are.

        Raises:
            BadRequestError: Fewer than are wanted, more than there may be, or of a search too.
        """
        if self.candidates is None:
            return 0
        most = min(config.max_choices, config.max_batch)
        if not (self.n or 1) <= self.candidates <= most:
            raise BadRequestError(
                f"candidates={self.candidates}: at least n={self.n or 1}, at most {most}",
                param="candidates",
            )
        if (self.num_beams or 1) > 1:
            raise BadRequestError(
                "candidates: a search finds its own; leave out candidates or num_beams",
                param="candidates",
            )
        return self.candidates

    def request(self, scenarios: Scenarios) -> CopyRequest:
        """What the generator is asked for.

        Args:
            scenarios: The caller's.

        Raises:
            InputError: No title, or a scenario, tone or language there is not, with those there
                are; or the scenario needs a field that is not given.
        """
        words = scenarios.words[scenarios.spoken(self.language)].model_dump()
        recent = [
            words[event.kind].replace("{}", " ".join(event.text.split())) for event in self.events
        ]
        request = CopyRequest(
            title=self.title,
            description=scenarios.described(
                self.description, self.attributes, language=self.language
            ),
            category=self.category,
            brand=self.brand,
            price=self.price,
            shopper=self.shopper,
            recent=words["then"].join(reversed(recent)),
            question=self.question,
            reviews=words["then"].join(self.reviews),
            scenario=self.scenario,
            tone=self.tone,
            language=self.language,
        )
        scenarios.check(
            scenario=self.scenario,
            tone=self.tone,
            language=self.language,
            given={
                "question": request.question,
                "reviews": request.reviews,
                "shopper": request.shopper,
            },
        )
        return request
