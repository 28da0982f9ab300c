"""One set of patterns for personal data, with its check digits."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from handbill.generator.claims.personal import find_personal, id_card_check, luhn, mask_personal

BIRTH = "110101" + "19900307"


def kinds(text):
    return [found.kind for found in find_personal(text)]


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("a.weaver@example.org", "email"),
        ("ａ＠example.org", "email"),
        ("weaver (at) example.org", "email"),
        ("电话13812345678", "phone"),
        ("+86 138-1234-5678", "phone"),
        ("１３８１２３４５６７８", "phone"),
        ("010-62345678", "phone"),
        ("(0755) 26234567转801", "phone"),
        ("+44 20 7946 0018", "phone"),
        ("(415) 555-0132", "phone"),
        ("4111 1111 1111 1111", "bank_card"),
        ("住在松林路12号3栋501室", "address"),
        ("at 14 Old Mill Lane, Apt 3", "address"),
    ],
)
def test_each_kind_is_found_and_masked(text, kind):
    assert kinds(text) == [kind]
    assert f"[{kind}]" in mask_personal(text)
    assert not find_personal(mask_personal(text))


@pytest.mark.parametrize(
    "text",
    [
        "4111 1111 1111 1112",
        "ISBN 978-7-111-40701-0",
        "400-810-8888",
        "1-800-555-0100",
        "2025-03-01 12:30",
        "原价 1299.00 元",
        "第12届",
        "a 10 minute drive",
        "version 3.14.159 @ 50 Hz",
        "走到路口，3号出口",
    ],
)
def test_what_only_looks_personal_is_left_alone(text):
    assert kinds(text) == []


@given(st.text("0123456789", min_size=3, max_size=3))
def test_an_id_card_is_told_by_its_check_character(order):
    right = id_card_check(BIRTH + order)
    assert kinds(f"证 {BIRTH}{order}{right.upper()} 号") == ["id_card"]
    wrong = "1" if right != "1" else "2"
    assert "id_card" not in kinds(f"证 {BIRTH}{order}{wrong} 号")


@given(st.text("0123456789", min_size=12, max_size=12))
def test_a_card_is_told_by_its_check_digit(middle):
    digits = [d for d in "0123456789" if kinds("4000"[:3] + middle + d) == ["bank_card"]]
    assert digits == [d for d in "0123456789" if luhn("400" + middle + d)]
    assert len(digits) == 1


@given(st.text(max_size=80))
def test_masking_twice_is_masking_once(text):
    masked = mask_personal(text)
    assert mask_personal(masked) == masked
