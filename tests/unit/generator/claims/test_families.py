"""Families of claims, and the innocent uses of the same words. None of these lines made a rule."""

import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from handbill.generator.claims.checker import blocks, check

ROOT = Path(__file__).resolve().parents[4]
FORBIDDEN = {
    "rank without 最": [
        "找不到比它更稳的梯子",
        "论保温，同行只能望其项背",
        "甩开第二名一大截的销量",
        "全市只此一家",
    ],
    "disease by its form": [
        "贴一晚，腱鞘炎不再犯",
        "专治多动症的口服液",
        "克服强迫症的茶",
        "能治飞蚊症",
    ],
    "organs and their repair": ["修复受损的毛囊", "唤醒衰老的细胞", "疏通血管，人轻松"],
    "agencies": ["市政府采购的台灯", "航天局同款铅笔", "总理表扬过的面馆"],
    "results": ["保您孩子考上重点", "没考上学费全退", "百分百回本", "除菌率高达九十九"],
    "money": ["到期高价回收的纪念票", "月月分红的果园", "绝不亏本"],
    "told experiences": [
        "老公穿上就舍不得脱",
        "隔壁李阿姨夸个不停",
        "车友老赵这样评价",
        "我是油皮，用了两瓶",
    ],
    "no rival": [
        "No brand brews a stronger pot",
        "Nothing else on earth keeps soup this hot",
        "Nobody bakes like we do",
    ],
    "disease by its ending": [
        "It treats tonsillitis overnight",
        "Reverses alopecia",
        "Heals kidney failure in cats",
    ],
    "repair of the body": [
        "Rebuilds worn cartilage",
        "Regrows lost hair",
        "Throw away your inhaler",
    ],
    "proof": ["Doctors are stunned by this tea", "NASA-developed socks", "By a team of surgeons"],
    "outcomes": ["We guarantee better marks", "After one lesson your dog will obey every word"],
    "crowds": [
        "Customers are raving about it",
        "A reader named Sue wrote that it saved her",
        "Ten out of ten from us",
    ],
    "luck and evil": [
        "戴上它，贵人自来",
        "这串手链可招财辟邪",
        "大师开光的吊坠",
        "客厅挂一幅，改善家中风水",
        "镇宅化煞的铜葫芦",
        "旺夫又旺财的戒指",
        "助您化解太岁",
        "保您全家平安的玉佩",
        "五行缺水的人都该养一缸",
        "转运珠，一戴就转运",
    ],
    "pressure, told in Chinese": [
        "史上底价，再无此价",
        "错过今天，再等一年",
        "不买后悔一辈子",
        "最后一次机会",
        "仅此一次，永不返场",
        "明天就涨价",
        "开售三秒抢空",
        "手慢无",
    ],
    "results told in Chinese": [
        "喝了三周，瘦了八斤",
        "百分之九十的用户表示有改善",
        "连医生都惊讶",
        "你也能像她一样瘦",
    ],
    "effects for certain": [
        "包治各种脚臭",
        "一次见效",
        "永久固发",
        "无效全额退款",
        "没有任何后遗症",
        "每天一杯就能瘦",
    ],
    "pressure": [
        "Last chance ever",
        "You will never see this price again",
        "Lowest price of all time",
        "Once it's gone it's gone",
        "The price doubles tonight",
        "Act now before it's too late",
        "Selling fast",
        "Hundreds of shoppers are viewing this",
    ],
    "careers": ["A promotion is guaranteed", "Wear it and get that promotion"],
    "results told": [
        "Sheila lost 19 pounds in five weeks",
        "My doctor was amazed",
        "After one use my wrinkles vanished",
        "92% of users saw a change",
        "Everyone who tries it comes back",
        "She passed, and so can you",
        "Get the same results",
    ],
    "names that lend weight": [
        "Recommended by leading dermatologists",
        "Scientists agree on this pillow",
        "As used by the military",
        "Worn by royalty since 1902",
        "Scientifically proved comfort",
        "Endorsed by a government agency",
        "According to experts, a must",
        "Our award-winning kettle",
        "The stamp of approval",
    ],
    "certainty": [
        "All of the gains without the risk",
        "Permanently removes hair",
        "It stays white forever",
        "Works in seconds",
        "You will definitely lose weight",
        "Full refund if you do not lose weight",
        "Ends snoring once and for all",
    ],
}
ALLOWED = {
    "a measure and a part": [
        "最细的那根针收边",
        "最陡的一段有扶手",
        "把最长的绳子系在树上",
        "请先放最重的书",
    ],
    "who is the tallest": ["谁的塔最高谁赢", "跑得最慢的小朋友收玩具", "哪只恐龙的脖子最长"],
    "order": ["第一行写名字，第二行写日期", "第一棒交给小红", "第一中学门口的车站"],
    "a bounded place": ["抽屉里唯一的钥匙", "全班唯一的双胞胎", "唯一的窗朝着海"],
    "names and works": [
        "顶级域名怎么写",
        "王牌、红桃和方块",
        "治疗术是游戏里的技能",
        "最高法院的明信片",
    ],
    "machines": ["减压阀请每年换", "锅盖上的排毒阀", "电脑病毒的科普书"],
    "games and sums": ["掷到六，得分翻倍", "习题：本金一百，利息多少"],
    "no promise": ["本品不能代替药物", "不承诺任何收益"],
    "part and place": [
        "The best seat in the old hall is taken",
        "The most brittle part is the rim",
        "Hang the longest coat on the lowest peg",
    ],
    "play": [
        "Paint the number one in red",
        "The winner of each round draws a card",
        "The champion in this story is a goat",
    ],
    "words that are named": [
        "Guarantee is misspelled on the poster",
        "Supreme court flash cards",
        "Detox is spelled in beads on the frame",
    ],
    "cures that cure nothing": [
        "Let the varnish cure for a day",
        "A cure for boredom in a tin",
        "Computer viruses explained",
    ],
    "shapes": [
        "Five star-shaped buttons",
        "Five stars hang from a string",
        "Bus number one stops here",
    ],
    "motifs and greetings": [
        "招财猫存钱罐，陶瓷烧制",
        "恭喜发财贺卡，十张一套",
        "福字窗花，红纸剪成",
        "瓶身的鱼纹寓意吉祥",
        "祝你出入平安",
        "红包印着招财进宝",
        "桃花图案的茶杯",
        "包裹在上海中转运往各地",
        "通风水箱带盖",
        "本品只作装饰，没有招财的作用",
    ],
    "words of the trade": ["Spring promotion: two lamps", "A nude dress with a belt"],
    "offers with an end, in Chinese": [
        "活动截至11月30日",
        "售完即止",
        "周日晚上结束，满两件减十元",
        "最后5分钟关火",
        "错过花期也能赏的干花",
        "预售期三天，之后恢复门店价",
    ],
    "service, in Chinese": ["七天无理由退货", "两年质保，全国可修", "破损包赔", "三十天内可退换"],
    "tastes in Chinese": ["偏甜，配清茶合适", "版型偏小，建议选大一码"],
    "offers with an end": [
        "The offer ends on Sunday 30 November",
        "While stocks last",
        "Last chance: the offer ends on Sunday 30 November",
        "Two for one until Friday",
        "Each player gets one last chance",
        "Dry the cups once the soup is gone",
    ],
    "tastes and fits": [
        "It tastes of plum and runs a size small",
        "The sleeves are long, so size down",
        "Grown people lose gloves, so these come with a cord",
    ],
    "what can be looked up": [
        "Certified by the textile institute, no. 12.HUS.4471",
        "Designed with physiotherapist feedback",
        "Reviewed in our own lab",
        "As used in the recipe overleaf",
    ],
    "service": [
        "Money back within 30 days",
        "We match the price of local shops",
        "Two years of repairs at no charge",
        "Send it back if you do not like it",
    ],
}


def lines(families):
    return [(family, text) for family, texts in families.items() for text in texts]


@pytest.mark.parametrize(("family", "text"), lines(FORBIDDEN))
def test_claims_are_blocked(family, text):
    assert blocks(check(text)), family


@pytest.mark.parametrize(("family", "text"), lines(ALLOWED))
def test_innocent_uses_pass(family, text):
    assert not [f.rule for f in check(text) if f.severity == "block"], family


def phrases(value) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from phrases(item)


def test_nothing_our_own_sample_shops_say_is_blocked():
    files = sorted((ROOT / "simulations" / "sample_shops").glob("*.toml"))
    texts = [text for file in files for text in phrases(tomllib.loads(file.read_text("utf-8")))]
    assert len(texts) > 500
    assert [text for text in texts if blocks(check(text))] == []
