"""``handbill recommend``: products for a shopper, beside the shop's own data."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console
from rich.table import Table

from handbill.clients.commands import DEFAULT_HOME, AsJson, Home, Shop, merchant_folder

if TYPE_CHECKING:
    from handbill.generator.interest import InterestModel
    from handbill.generator.profile import Profile
    from handbill.generator.recommend import Candidate, Mode


def recommend(
    shopper: Annotated[
        str,
        typer.Argument(metavar="SHOPPER", help="The shopper's id; one never seen may have none."),
    ] = "",
    *,
    shop: Shop = "",
    interests: Annotated[
        str, typer.Option(help="What the shopper says to like, in words; the shop's own if empty.")
    ] = "",
    mode: Annotated[
        str, typer.Option(help="hybrid, collaborative (who liked it) or content (what it is).")
    ] = "hybrid",
    top: Annotated[int, typer.Option(help="How many products.")] = 5,
    model: Annotated[
        Path | None,
        typer.Option(help="Folder of a model of interest; by default the one of the last run."),
    ] = None,
    as_json: AsJson = False,
    home: Home = DEFAULT_HOME,
) -> None:
    """Recommend products to a shopper, say why, and give the request for copy about each.

    Works beside the shop's data: nothing of the shopper leaves. A shopper never seen gets what the
    words and the model of interest say, else what most shoppers liked.
    """
    from handbill.clients.behaviour import interest_words, read_behaviour
    from handbill.clients.merchant import Merchant
    from handbill.clients.shoppers import own_source
    from handbill.errors import MissingError
    from handbill.generator.base_models import resolve_base
    from handbill.generator.behaviour import Shopper
    from handbill.generator.product_features import base_embeddings, product_features
    from handbill.generator.recommend import Recommender

    folder = merchant_folder(home, shop)
    merchant = Merchant.load(folder)
    source = own_source(merchant)
    behaviour = read_behaviour(source)
    if shopper and shopper not in behaviour.shoppers:
        raise MissingError(
            "no such shopper in this shop's rows and events; leave the id out for one never seen"
        )
    who = behaviour.shoppers[shopper] if shopper else Shopper()
    if interests:
        who = replace(who, interests=interest_words(interests))
    products = behaviour.products
    recommender = Recommender(
        products,
        behaviour.shoppers,
        product_features(products, embed=base_embeddings(resolve_base(merchant.base))),
        model=_model(folder, model),
    )
    profile, found = recommender.recommend(who, mode=cast("Mode", mode), top=top)
    language = source.info.language
    if as_json:
        facts = _facts(profile, found, scenario=source.info.scenario, language=language)
        typer.echo(json.dumps({"mode": mode, **facts}, indent=2, ensure_ascii=False))
    else:
        _print(profile, found, language=language)


def _model(folder: Path, given: Path | None) -> "InterestModel | None":
    from handbill.clients.studies import INTEREST_FOLDER
    from handbill.generator.interest import InterestModel
    from handbill.generator.model_specs import SPEC_FILE, read_interest

    where = given or folder / INTEREST_FOLDER
    if given is None and not (where / SPEC_FILE).is_file():
        return None
    spec, tensors = read_interest(where)
    model = InterestModel(spec)
    model.load(tensors)
    return model


def _facts(
    profile: "Profile", found: "list[Candidate]", *, scenario: str, language: str
) -> dict[str, Any]:
    from handbill.generator.profile import copy_request, shopper_text

    return {
        "interests": asdict(profile) | {"text": shopper_text(profile, language=language)},
        "products": [
            {
                "id": one.product.id,
                "title": one.product.title,
                "score": one.score,
                "chance": one.chance,
                "tags": [asdict(tag) for tag in one.tags],
                "because": [
                    {"id": liked.id, "title": liked.title, "share": share}
                    for liked, share in one.because
                ],
                "popular": one.popular,
                "request": asdict(
                    copy_request(profile, one.product, scenario=scenario, language=language)
                )
                if one.product.title
                else None,
            }
            for one in found
        ],
    }


def _print(profile: "Profile", found: "list[Candidate]", *, language: str) -> None:
    from handbill.generator.profile import shopper_text

    console = Console(soft_wrap=True, highlight=False)
    how = "nats of log-odds" if profile.basis == "model" else "counted; no model of interest yet"
    tags = ", ".join(f"{tag.value} {tag.weight:+.2f}" for tag in profile.tags)
    console.print(f"interests ({how}): {tags or 'none known'}", markup=False)
    if text := shopper_text(profile, language=language):
        console.print(f'for a prompt: "{text}"', markup=False)
    table = Table("product", "chance", "interests it meets", "because the shopper liked")
    for one in found:
        table.add_row(
            one.product.title or one.product.id,
            "-" if one.chance is None else f"{one.chance:.0%}",
            ", ".join(tag.value for tag in one.tags) or "-",
            ", ".join(liked.title or liked.id for liked, _ in one.because)
            or ("many shoppers like it" if one.popular else "what the shopper says"),
        )
    console.print(table if found else "No product is left that the shopper has not met.")
