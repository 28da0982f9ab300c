"""``handbill copy``: ask a running service for copy."""

import json
from typing import Annotated, Any, get_args

import typer

from handbill.errors import InputError
from handbill.serving.cli import DEFAULT_HOME, DEFAULT_URL, AsJson, Home, Key, Shop, Url, ask


def copy(
    text: Annotated[str, typer.Argument(help="What is known of the product, in words.")] = "",
    *,
    title: Annotated[str, typer.Option(help="The product's name; TEXT if not given.")] = "",
    price: Annotated[str, typer.Option(help="The product's price, as it is to be written.")] = "",
    attribute: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="A fact of the product; again for another."),
    ] = None,
    insist: Annotated[
        float,
        typer.Option(help="Nats that attributes become likelier by while the copy lacks them."),
    ] = 0.0,
    shopper: Annotated[str, typer.Option(help="The shopper's interests, in words.")] = "",
    event: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KIND=TEXT",
            help="What the shopper did just now: view, search, cart or purchase. Newest last.",
        ),
    ] = None,
    question: Annotated[str, typer.Option(help="Of a shopper, for service_answer.")] = "",
    buyer_review: Annotated[
        list[str] | None, typer.Option(help="What a buyer wrote, for review_summary; again.")
    ] = None,
    scenario: Annotated[
        str, typer.Option(help="What kind of copy: handbill scenarios list.")
    ] = "recommendation_reason",
    tone: Annotated[str, typer.Option(help="How it is to sound: handbill scenarios list.")] = "",
    language: Annotated[str, typer.Option(help="Language of the copy, such as en.")] = "en",
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="How many pieces of copy.")] = 1,
    candidates: Annotated[
        int | None, typer.Option(min=1, help="Write so many and take the best.")
    ] = None,
    polish: Annotated[bool, typer.Option("--polish", help="Mend grammar and marks.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Say which facts, interests and events it comes from.")
    ] = False,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest copy.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 for the likeliest copy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same copy.")] = None,
    label: Annotated[
        str, typer.Option(help="Say that a machine wrote it: none, start, end.")
    ] = "none",
    review: Annotated[
        bool, typer.Option("--review", help="Keep what is blocked for handbill reviews.")
    ] = False,
    feedback: Annotated[
        bool, typer.Option("--feedback", help="Keep the text to learn from what shoppers do.")
    ] = False,
    shopper_key: Annotated[str, typer.Option(help="Stands for the shopper it is for.")] = "",
    experiment: Annotated[
        str, typer.Option(metavar="ID", help="Write it as the shopper's variant has it.")
    ] = "",
    url: Url = DEFAULT_URL,
    key: Key = "",
    shop: Shop = "",
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Ask a running service for copy."""
    if not (title or text):
        raise InputError('say what to write about: handbill copy "Oak desk lamp, warm light"')
    body: dict[str, Any] = {
        "title": title or text[:500],
        "description": text if title else "",
        "price": price,
        "attributes": dict(_pairs("--attribute", attribute)),
        "insist": insist,
        "shopper": shopper,
        "events": _events(event),
        "question": question,
        "reviews": buyer_review or [],
        "scenario": scenario,
        "tone": tone,
        "language": language,
        "n": n,
        "candidates": candidates,
        "polish": polish,
        "explain": explain,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "label": label,
        "review": review,
        "feedback": feedback,
        "shopper_key": shopper_key,
        "experiment": experiment,
    }
    answer = ask("POST", url, "/v1/copy", body=body, key=key, shop=shop, home=home)
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for piece in answer["copies"]:
        typer.echo(piece["text"])
        for line in in_words(piece):
            typer.echo(f"  {line}")
    for piece in answer["blocked"]:
        rules = ", ".join(dict.fromkeys(found["rule"] for found in piece["findings"]))
        typer.echo(f"one piece was blocked: {rules}", err=True)


def in_words(piece: dict[str, Any]) -> list[str]:
    """Lines that say how a piece of copy was chosen, what was mended and what it comes from."""
    lines = []
    if chosen := piece.get("chosen"):
        lines.append(
            f"{chosen['passed']} of {chosen['candidates']} candidates passed the check; the best of them"
        )
    lines += [f"mended: {one['before']!r} to {one['after']!r}" for one in piece.get("polished", ())]
    for part in piece.get("explanation", {}).get("parts", ()):
        words = ", ".join(word["text"] for word in part["words"])
        about = f"  ({words})" if words else ""
        lines.append(f"{part['score']:+7.2f}  {part['kind']}: {part['text']}{about}")
    return lines


def _events(given: list[str] | None) -> list[dict[str, str]]:
    from handbill.serving.copy_body import RecentEvent

    kinds = get_args(RecentEvent.model_fields["kind"].annotation)
    events = []
    for kind, text in _pairs("--event", given):
        if kind not in kinds:
            raise InputError(f"--event {kind}={text}: the kind is one of {', '.join(kinds)}")
        events.append({"kind": kind, "text": text})
    return events


def _pairs(option: str, given: list[str] | None) -> list[tuple[str, str]]:
    pairs = []
    for one in given or ():
        name, sign, value = one.partition("=")
        if not (sign and name.strip() and value.strip()):
            raise InputError(f"{option} {one}: write it as NAME=VALUE")
        pairs.append((name.strip(), value.strip()))
    return pairs
