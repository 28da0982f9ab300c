"""What the check of copy finds, on lines written after its rules, and how long it takes.

``python benchmarks/claims.py`` takes seconds. The lines are our own (``benchmarks/data``). The rules were
written against ``claims_zh.tsv`` and ``claims_en.tsv``; ``claims_*_held_out.tsv`` were written when earlier rules
stood, and what later ones missed of them was read. ``claims_*_blind.tsv``, if they are there, somebody wrote who had
not seen the rules, and no line of them was read for a rule: theirs are the figures to expect. A set that was learnt
from becomes development lines. ``--data DIR`` adds the share of real copy
that is blocked, of public data sets that are not part of this repository.
"""

import argparse
import gzip
import json
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from handbill.generator.claims.checker import blocks, check
from handbill.generator.claims.personal import find_personal, id_card_check, luhn
from handbill.simulations.results import write_result

HERE: Final = Path(__file__).parent
RESULT: Final = HERE / "results" / "claims.json"
ALLOWED: Final = frozenset({"ok", "lookalike"})
LANGUAGES: Final = ("zh", "en")
REAL: Final = {
    "adgen_zh": ("pairs", "copy"),
    "kobe_zh": ("pairs", "copy"),
    "xrec_reasons_en": ("reasons", "explanation"),
    "amazon_office_industrial_en": ("products", "description"),
}
N_PERSONAL: Final = 900
# About 100 tokens of Qwen's or Llama's vocabulary.
CHARS_100_TOKENS: Final = {"zh": 150, "en": 450}
NOTES: Final = (
    "recall_*: share of forbidden lines that are blocked; false_positive_rate: share of allowed lines "
    "(most of them made to look forbidden) that are blocked; obfuscated_recall: of forbidden lines "
    "in disguise. Without a prefix on held-out lines, whose misses were read while the rules were widened; blind.* on lines "
    "by somebody who had not seen the rules, none of which was read for one: families of rules were added once after the counts by "
    "kind of claim had been seen; development.* on the lines the rules were written against. "
    "The development lines hold five earlier held-out sets and 782 lines by another hand: each was measured once, then the rules learnt "
    "from it. But for the blind ones these figures flatter. personal data: 900 generated lines, "
    "a third of them numbers that only look personal. real.*: share of texts of public data that are blocked, "
    "not a rate of errors: most of these texts do make the claims."
)
Line = tuple[str, str]


def lines(name: str) -> list[Line]:
    """Label and text of each line of a file."""
    rows = (HERE / "data" / f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    pairs = [row.split("\t") for row in rows]
    return [(label, text) for label, text in pairs]


def measure_claims(suffix: str) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Rates on the files of a suffix, and a table of them by label."""
    counts: Counter[tuple[str, str, bool]] = Counter()
    for language in LANGUAGES:
        for label, text in lines(f"claims_{language}{suffix}"):
            counts[language, label, blocks(check(text))] += 1

    def share(languages: tuple[str, ...], labels: frozenset[str]) -> float:
        seen = {
            hit: sum(
                n
                for (lang, label, was), n in counts.items()
                if lang in languages and label in labels and was == hit
            )
            for hit in (True, False)
        }
        return seen[True] / sum(seen.values())

    forbidden = frozenset(label for _, label, _ in counts) - ALLOWED
    metrics = {f"recall_{language}": share((language,), forbidden) for language in LANGUAGES}
    metrics["false_positive_rate"] = share(LANGUAGES, ALLOWED)
    metrics["obfuscated_recall"] = share(LANGUAGES, frozenset({"obfuscated"}))
    metrics["lines"] = sum(counts.values())
    pairs = sorted({(language, label) for language, label, _ in counts})
    table = [
        {
            "input": f"claims{suffix or '_development'}",
            "language": language,
            "label": label,
            "lines": counts[language, label, True] + counts[language, label, False],
            "blocked": counts[language, label, True],
        }
        for language, label in pairs
    ]
    return metrics, table


def personal_lines(seed: int) -> Iterator[tuple[str, str]]:
    """Lines with a piece of invented personal data, and its kind; "" for what only looks like it."""
    draw = random.Random(seed)

    def digits(n: int) -> str:
        return "".join(draw.choices("0123456789", k=n))

    def card() -> str:
        first = draw.choice(["4", "51", "55", "62", "6011"])
        body = first + digits((18 if first == "62" and draw.random() < 0.5 else 15) - len(first))
        return body + next(d for d in "0123456789" if luhn(body + d))

    def id_card() -> str:
        born = f"{draw.randint(1950, 2010)}{draw.randint(1, 12):02}{draw.randint(1, 28):02}"
        first = draw.choice(["110101", "310104", "440305", "510107"]) + born + digits(3)
        return first + id_card_check(first).upper()

    def spaced(text: str, size: int = 4) -> str:
        gap = draw.choice(["", "", " ", "-"])
        return gap.join(text[i : i + size] for i in range(0, len(text), size))

    def wide(text: str) -> str:
        if draw.random() < 0.15:
            return text.translate({ord(c): ord(c) + 0xFEE0 for c in "0123456789"})
        return text

    def mobile() -> str:
        number = draw.choice(["13", "15", "17", "18", "19"]) + digits(9)
        gap = draw.choice(["", "", " ", "-"])
        return draw.choice(["", "", "+86 "]) + gap.join((number[:3], number[3:7], number[7:]))

    def landline() -> str:
        area = draw.choice(["010", "021", "0755", "0571"])
        return draw.choice([f"{area}-", f"({area}) "]) + draw.choice("5678") + digits(7)

    def international() -> str:
        return draw.choice(
            [
                f"+44 20 7946 {digits(4)}",
                f"+1 415-555-{digits(4)}",
                f"+49 30 {digits(7)}",
                f"(415) 555-{digits(4)}",
                f"+33 1 42 {digits(2)} {digits(2)} {digits(2)}",
            ]
        )

    def email() -> str:
        name = draw.choice(["lin", "a.weaver", "oak_lamp", "shop-7", "m.k", "tea99"])
        host = draw.choice(["example.org", "mail.example.com", "example.net", "post.example.cn"])
        return draw.choice(["{}@{}", "{}@{}", "{} (at) {}"]).format(name, host)

    def address() -> str:
        if draw.random() < 0.5:
            city = draw.choice(["杭州市西湖区", "成都市锦江区", "北京市朝阳区", ""])
            street = draw.choice(["松林路", "湖滨街", "青石巷", "建设大道"])
            tail = draw.choice(["", "3栋2单元501室", "7楼"])
            return f"{city}{street}{draw.randint(1, 400)}号{tail}"
        name = draw.choice(["Maple", "Old Mill", "Harbour", "North Hill"])
        kind = draw.choice(["Street", "Road", "Lane", "Avenue", "St.", "Ave"])
        return f"{draw.randint(1, 900)} {name} {kind}{draw.choice(['', ', Apt 4'])}"

    makers = {
        "phone": (mobile, mobile, landline, international),
        "id_card": (id_card,),
        "bank_card": (lambda: spaced(card()),),
        "email": (email,),
        "address": (address,),
    }
    frames = ["联系 {}，谢谢", "{}", "Write to {} today.", "收件信息:{}。", "Call or visit: {}"]

    def innocent() -> str:
        number = digits(16)
        while luhn(number):
            number = digits(16)
        return draw.choice(
            [
                f"订单号 {number}，已发货",
                f"ISBN 978-7-{digits(3)}-{digits(5)}-{digits(1)}",
                f"客服热线 400-{digits(3)}-{digits(4)}",
                f"Call us on 1-800-555-{digits(4)}",
                f"型号 X{digits(6)}，功率 {draw.randint(10, 99)}00 W",
                f"{draw.randint(2020, 2030)}-{draw.randint(1, 12):02}-{draw.randint(1, 28):02} 上市",
                f"原价 {digits(3)}.{digits(2)} 元，现价 {digits(2)}.00 元",
                f"批号 {id_card()[:17]}{draw.choice('AB')}",
                f"Pack of {draw.randint(2, 90)} at {draw.randint(2, 90)}.99, size {digits(2)}x{digits(3)}",
                f"条形码 69{digits(11)}",
                f"Version {draw.randint(1, 9)}.{digits(2)}.{digits(3)} @ 50 Hz",
                f"走完这条路，{draw.randint(2, 9)}分钟就到，门牌在第{draw.randint(2, 9)}栋旁边",
                f"{draw.randint(2, 40)} warm rooms on a quiet road",
            ]
        )

    for i in range(N_PERSONAL):
        if i % 3 == 2:
            yield innocent(), ""
        else:
            kind = draw.choice(list(makers))
            yield draw.choice(frames).format(wide(draw.choice(makers[kind])())), kind


def measure_personal(seed: int) -> dict[str, float]:
    """Recall and precision on generated personal data."""
    wanted, found, right = Counter[str](), 0, Counter[str]()
    for text, kind in personal_lines(seed):
        seen = [personal.kind for personal in find_personal(text)]
        wanted[kind] += 1
        found += len(seen)
        right[kind] += bool(kind) and kind in seen
    kinds = [kind for kind in wanted if kind]
    metrics = {f"pii_recall.{kind}": right[kind] / wanted[kind] for kind in sorted(kinds)}
    total = sum(right.values())
    return metrics | {
        "pii_recall": total / sum(wanted[kind] for kind in kinds),
        "pii_precision": total / found,
    }


def measure_time() -> dict[str, float]:
    """Milliseconds of one check of about 100 tokens, median of many different texts."""
    metrics = {}
    for language, size in CHARS_100_TOKENS.items():
        rows = [text for _, text in lines(f"claims_{language}")]
        joined = (" " if language == "en" else "，").join(rows)
        texts = [joined[i : i + size] for i in range(0, len(joined) - size, size)]
        for text in texts:  # patterns are compiled when first needed
            check(text)
        seconds = []
        for text in texts * 5:
            start = time.perf_counter()
            check(text)
            seconds.append(time.perf_counter() - start)
        metrics[f"check_ms_{language}"] = statistics.median(seconds) * 1e3
    return metrics


def measure_real(folder: Path) -> dict[str, float]:
    """Share of real texts that are blocked, 2,000 of each set."""
    metrics = {}
    for name, (file, column) in REAL.items():
        with gzip.open(folder / name / f"{file}.jsonl.gz", "rt", encoding="utf-8") as rows:
            values = [json.loads(row)[column] for row in rows]
        texts = [" ".join(value) if isinstance(value, list) else value for value in values]
        texts = random.Random(0).sample(texts, min(2000, len(texts)))
        metrics[f"real.{name}.blocked"] = sum(blocks(check(text)) for text in texts) / len(texts)
    return metrics


def main() -> None:
    """Measure; write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="Folder of public data sets, one folder each.")
    parser.add_argument("--results", type=Path, default=RESULT)
    asked = parser.parse_args()
    metrics, table = measure_claims("_held_out")
    for name, suffix in {"blind": "_blind", "development": ""}.items():
        if not (HERE / "data" / f"claims_zh{suffix}.tsv").exists():
            continue
        others, more = measure_claims(suffix)
        metrics |= {f"{name}.{metric}": value for metric, value in others.items()}
        table += more
    metrics |= measure_personal(seed=0) | measure_time()
    command = "python benchmarks/claims.py"
    if asked.data:
        metrics |= measure_real(asked.data)
        command += " --data PATH"
    metrics = {name: round(value, 4) for name, value in metrics.items()}
    write_result(asked.results, command=command, metrics=metrics, table=table, notes=NOTES)
    for name, value in metrics.items():
        print(f"{name:48} {value}")


if __name__ == "__main__":
    main()
