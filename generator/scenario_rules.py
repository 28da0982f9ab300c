"""Does copy keep the rules of its scenario: length, lines, and what it may not say?"""

from collections.abc import Iterator
from dataclasses import replace

from handbill.generator.claims.checker import Finding
from handbill.generator.claims.folding import fold
from handbill.generator.claims.lexicon import Severity
from handbill.generator.prompts import CopyRequest
from handbill.generator.scenarios import Scenario, Scenarios, shipped


def check_scenario(
    text: str, request: CopyRequest, *, scenarios: Scenarios | None = None
) -> list[Finding]:
    """What of a text its scenario does not allow, in the order of the text.

    Args:
        text: As it would be served.
        request: What it was written for.
        scenarios: The caller's; the shipped ones if not given.
    """
    scenarios = scenarios or shipped()
    scenario = scenarios.get(request.scenario)
    language = scenarios.spoken(request.language)
    found = [
        *_said(text, request, scenarios),
        *_length(text, scenario, language if language in scenario.languages() else "en"),
    ]
    return sorted(found, key=lambda one: (one.start, one.rule))


def facts_of(request: CopyRequest, *, scenarios: Scenarios | None = None) -> CopyRequest:
    """The request with everything that its scenario takes facts from in the description."""
    scenario = (scenarios or shipped()).get(request.scenario)
    more = [getattr(request, name) for name in scenario.facts]
    return (
        replace(request, description="\n".join([request.description, *more])) if more else request
    )


def fits(text: str, request: CopyRequest, *, scenarios: Scenarios | None = None) -> bool:
    """Whether a text keeps everything of its scenario, warnings included."""
    return not check_scenario(text, request, scenarios=scenarios)


def _said(text: str, request: CopyRequest, scenarios: Scenarios) -> Iterator[Finding]:
    folded = fold(text)
    given = None
    for name in scenarios.get(request.scenario).rules:
        rule = scenarios.rules[name]
        for pattern in rule.compiled():
            for match in pattern.finditer(folded.text):
                if not match[0]:
                    continue
                given = given or fold(_given(request)).text
                if rule.given == "rule" and any(one.search(given) for one in rule.compiled()):
                    continue
                if rule.given == "words" and match[0] in given:
                    continue
                span = folded.span(*match.span())
                yield Finding(*span, f"scenario.{name}", rule.severity, rule.reason)


def _length(text: str, scenario: Scenario, language: str) -> Iterator[Finding]:
    least, most = scenario.languages()[language].chars
    severity: Severity = "block" if scenario.strict else "warn"
    if not least <= len(text) <= most:
        reason = f"{len(text)} characters; this scenario has {least} to {most}"
        yield Finding(min(most, len(text)), len(text), "scenario.length", severity, reason)
    lines = text.strip().splitlines()
    if scenario.lines and len(lines) > scenario.lines:
        start = len("\n".join(lines[: scenario.lines]))
        reason = f"{len(lines)} lines; this scenario has at most {scenario.lines}"
        yield Finding(start, len(text), "scenario.lines", severity, reason)


def _given(request: CopyRequest) -> str:
    fields = (request.title, request.description, request.category, request.brand, request.price)
    return "\n".join(fields)
