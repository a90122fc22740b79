"""Settings of answers that are grounded in passages."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field, model_validator

from trivet.config import Part
from trivet.serve.retrieval.passages import Filters


class GroundingSettings(Part):
    """What is searched, what counts as evidence, and how strictly claims are checked."""

    k: int = Field(4, ge=1, le=100)
    """Passages that are looked up and shown to the model."""
    as_of: datetime | None = None
    """Answer by what was known then: no document that was changed later."""
    since: datetime | None = None
    """No document that was changed earlier: with nothing newer, the answer is that all there is is older."""
    tags: list[str] = []
    """Only documents that have all of these."""
    under: str | None = None
    """Only documents whose address begins so."""
    least_similarity: float = Field(-1.0, ge=-1, le=1)
    """Cosine of question and passage below which a passage is no evidence. -1: all are; it depends on the embedding."""
    least_coverage: float = Field(0.5, ge=0, le=1)
    """Share of the question's content words that a passage (with its title) must hold, to be evidence at all."""
    least_relevance: float = Field(0.6, ge=0, le=1)
    """Share of what a question asks (its names aside) that a claim and the sentences behind it must speak of."""
    gate: Literal["rules", "logprob", "judge"] = "rules"
    """What a claim must pass: rules alone, or rules and then the model's log-probability, or rules and then a judge."""
    overlap: float = Field(0.6, ge=0, le=1)
    """Rules: share of a claim's content words that must stand together in the passage."""
    least_probability: float = Field(0.5, gt=0, lt=1)
    """logprob and judge: probability of `supported` below which a claim is removed."""
    repairs: int = Field(1, ge=0, le=5)
    """Where no claim is left: how often the model is asked again, for less than it said."""
    extract: bool = True
    """Where repairs fail, too: answer by the passages' own best sentence, if it gives what was asked for."""
    longest: int = Field(1200, ge=100)
    """Characters of each passage that the model is shown, and claims are checked against."""
    max_claims: int = Field(40, ge=1, le=1000)
    """Claims of one answer that are checked; what comes behind them is removed."""

    @model_validator(mode="after")
    def _times(self) -> GroundingSettings:
        for name in ("as_of", "since"):
            value = getattr(self, name)
            if value is not None and value.tzinfo is None:
                raise ValueError(f"{name} must say its zone: 2031-05-03T00:00:00+00:00, or …Z")
        if self.as_of is not None and self.since is not None and self.since > self.as_of:
            raise ValueError("since lies behind as_of: no document can be found")
        return self

    def filters(self) -> Filters | None:
        """For the search; None where nothing is filtered."""
        if self.as_of is None and self.since is None and not self.tags and self.under is None:
            return None
        return Filters(as_of=self.as_of, since=self.since, tags=tuple(self.tags), under=self.under)
