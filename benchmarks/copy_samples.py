"""Chinese copy as it comes, good and bad: one piece for each of twenty invented products.

``python benchmarks/copy_samples.py --work DIR`` writes ``docs/copy-samples.md`` with the generators that
``benchmarks/copy_quality.py`` trained in DIR; nothing is picked or mended by hand.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from copy_quality import INSIST

from handbill.errors import InputError
from handbill.generator.classic.kinds import load_critic
from handbill.generator.copies import Copy, read_copies
from handbill.generator.fidelity import attribute_coverage, vocabulary
from handbill.generator.generators import CARD, KINDS, load_writer, read_card
from handbill.generator.polish import polish
from handbill.generator.rerank import rerank
from handbill.generator.scenarios import shipped

ROOT: Final = Path(__file__).resolve().parents[1]
PRODUCTS: Final = ROOT / "benchmarks" / "data" / "invented_zh.jsonl"
PAGE: Final = ROOT / "docs" / "copy-samples.md"
DESCRIPTION: Final = "product_description"
# What two of the scenarios need besides a product.
ASKED: Final = {"question": "这款质量怎么样？", "reviews": "质量不错，很喜欢；尺寸刚好，物流也快。"}
HEAD: Final = """# Samples of Chinese copy

What the generators of [generators.md](generators.md#how-they-compare) write for twenty products that do not exist, good and bad: written once with
one seed, none picked, none mended by hand. `python benchmarks/copy_samples.py --work DIR` writes this page with the generators in DIR. A
figure in brackets is the share of the product's attribute values that stand in the copy.

All models learnt from descriptions alone. Whatever scenario the causal model is asked for, it writes a description: the sections after the first
show how far that carries.
"""


def named(product: Copy) -> str:
    """A product in a line."""
    values = dict.fromkeys(value for _, value in product.attributes)
    return "、".join(dict.fromkeys((product.request.title, *values)))


def section(title: str, products: Sequence[Copy], texts: Sequence[str]) -> Iterator[str]:
    """A heading, and a line for each product."""
    yield f"\n## {title}\n"
    for product, text in zip(products, texts, strict=True):
        share = attribute_coverage(product, text)
        told = "" if share is None else f" ({share:.2f})"
        yield f"{product.id}. **{named(product)}**{told}: {text.replace('*', '＊') or '-'}"


def best(products: Sequence[Copy], texts: Sequence[Sequence[str]], gan: Path) -> list[str]:
    """Of each product's candidates the first of `rerank`, polished; the GAN's verdict counts if there is one."""
    judge = load_critic(gan) if (gan / CARD).is_file() else None
    known, chosen = vocabulary(products), list[str]()
    for product, some in zip(products, texts, strict=True):
        one = replace(product, candidates=tuple(text or "-" for text in some))
        ranked = rerank(one, critic=judge, known=known, before=chosen)
        chosen.append(polish(replace(one, text=ranked[0].text))[0])
    return chosen


def page(work: Path) -> Iterator[str]:
    """The page's lines."""
    products = [
        replace(one, request=replace(one.request, scenario=DESCRIPTION))
        for one in read_copies(PRODUCTS, written=False)
    ]
    cards = {kind: card for kind in KINDS if (card := read_card(work / f"zh-{kind}"))}
    yield HEAD.rstrip("\n")
    for kind, card in cards.items():
        yield f"\n{kind} had {card['steps']:,} steps of training; held-out loss {card['held_out_loss']:.2f} nats a token."
    for kind in cards:
        folder = str(work / f"zh-{kind}")
        texts = load_writer(folder).write(products, seed=0)
        yield from section(f"{kind}, {DESCRIPTION}", products, [some[0] for some in texts])
        texts = load_writer(folder, insist=INSIST).write(products, n=8, seed=0)
        chosen = best(products, texts, work / "zh-gan")
        title = f"{kind}, {DESCRIPTION}, insisting on the attributes, best of 8, polished"
        yield from section(title, products, chosen)
    writer = load_writer(str(work / "zh-causal"))
    for name, scenario in shipped().all.items():
        if name == DESCRIPTION:
            continue
        needed = {field: ASKED[field] for field in scenario.needs}
        asked = [
            replace(one, request=replace(one.request, scenario=name, **needed)) for one in products
        ]
        found = writer.write(asked, seed=0)
        yield from section(f"causal, {name}", asked, [some[0] for some in found])


def main() -> None:
    """Write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="Folder of what is trained.")
    parser.add_argument("--page", type=Path, default=PAGE)
    asked = parser.parse_args()
    asked.page.write_text("\n".join(page(asked.work)) + "\n", encoding="utf-8")


if __name__ == "__main__":
    try:
        main()
    except (InputError, OSError) as error:
        raise SystemExit(f"error: {error}") from error
