"""A shop's folder becomes rows and rejects: nothing is lost, nothing is trained on twice."""

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from handbill.clients.cleaning import MAX_COPY_CHARS
from handbill.clients.descriptions import ShopInfo
from handbill.clients.rejects import RejectFile
from handbill.clients.shop import ShopData, load_shop, split_users
from handbill.errors import InputError
from handbill.generator.prompts import CopyRequest, Example

SHOP = '[shop]\nid = "corner-shop"\nname = "Corner Shop"\n'
ROWS = '[rows]\nfile = "copy.csv"\nuser = "who"\nitem = "what"\ntext = "copy"\n'
INLINE = SHOP + ROWS + 'title = "title"\n'
PRODUCTS = '[products]\nfile = "products.csv"\nitem = "id"\ntitle = "name"\nprice = "price"\n'
SHOPPERS = '[shoppers]\nfile = "shoppers.csv"\nuser = "id"\nshopper = "likes"\n'
EVENTS = '[events]\nfile = "events.csv"\nuser = "who"\nitem = "what"\nkind = "did"\ntime = "at"\n'


def make_folder(folder: Path, toml: str, **tables: str) -> Path:
    (folder / "shop.toml").write_text(toml)
    for name, content in tables.items():
        (folder / f"{name}.csv").write_bytes(content.encode(errors="surrogateescape"))
    return folder


def reasons(shop: ShopData) -> list[str]:
    return [str(reject) for reject in shop.rejects]


def invented(n_users: int, *, order: int = 1) -> ShopData:
    users = [f"u{n}" for n in range(n_users)][::order]
    rows = [
        Example(user=user, item=item, request=CopyRequest(title="Mug"), text=f"{user} {item}")
        for user in users
        for item in ("a", "b")
    ]
    return ShopData(info=ShopInfo(id="corner-shop", name="Corner"), rows=tuple(rows))


def test_rows_are_joined_with_products_and_shoppers(tmp_path):
    make_folder(
        tmp_path,
        SHOP + ROWS + PRODUCTS + SHOPPERS,
        copy="who,what,copy\nu1,p1,Good for tea.\nu2,p1,Good for you.\n",
        products="id,name,price\np1,  Blue\tMug ,£4.50\n",
        shoppers="id,likes\nu1,tea\nu2,\n",
    )
    shop = load_shop(tmp_path)

    asked = [("Blue Mug", "£4.50", "tea"), ("Blue Mug", "£4.50", "")]
    assert [(r.request.title, r.request.price, r.request.shopper) for r in shop.rows] == asked
    assert [(row.user, row.item, row.text) for row in shop.rows] == [
        ("u1", "p1", "Good for tea."),
        ("u2", "p1", "Good for you."),
    ]
    assert shop.rejects == ()


def test_a_rows_own_cells_come_before_the_products(tmp_path):
    make_folder(
        tmp_path,
        SHOP + ROWS + 'title = "title"\n' + PRODUCTS,
        copy="who,what,copy,title\nu1,p1,Good.,Own name\nu2,p1,Good.,\n",
        products="id,name,price\np1,Mug,\n",
    )
    assert [row.request.title for row in load_shop(tmp_path / "shop.toml").rows] == [
        "Own name",
        "Mug",
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("u1,p1,", "copy: empty"),
        (",p1,Good.", "who: empty"),
        ("u1, ,Good.", "what: empty"),
        ("u1,p1", "2 columns where the header has 3"),
        ("u1,p1,Good.,more", "4 columns where the header has 3"),
        ('u1,p1,"Good"."', "not a row of this table (',' expected after '\"')"),
        ("u1,p1,Go\udcffod.", "not valid UTF-8"),
        ("u1,p1,Go\x07od.", "copy: control characters"),
        ("u1,p1,Go\u202eod.", "copy: control characters"),
        ("u1,p1," + "x" * (MAX_COPY_CHARS + 1), "copy: longer than 2000 characters"),
        ("u" * 257 + ",p1,Good.", "who: longer than 256 characters"),
        ("u1,p1,Fine.", "the same row as line 2"),
        ("u1,p9,Good.", "what: not in products.csv"),
        ("u1,p2,Good.", "what: points at products.csv:3, which was set aside"),
        ("u9,p1,Good.", "who: not in shoppers.csv"),
        ("u1,p3,Good.", "empty title: neither the row nor its product has one"),
    ],
)
def test_a_bad_row_is_set_aside_with_its_line_and_reason(tmp_path, line, reason):
    make_folder(
        tmp_path,
        SHOP + ROWS + PRODUCTS + SHOPPERS,
        copy=f"who,what,copy\nu1,p1,Fine.\n{line}\n",
        products="id,name,price\np1,Mug,4\np2,Pot,-4\np3,,4\n",
        shoppers="id,likes\nu1,tea\n",
    )
    shop = load_shop(tmp_path)

    (reject,) = [reject for reject in shop.rejects if reject.table == "rows"]
    assert (reject.line, reject.reason, reject.raw) == (3, reason, line)
    assert len(shop.rows) == 1
    assert shop.n_read == 2
    assert "Good" not in str(reject) + repr(reject) + repr(shop)


@pytest.mark.parametrize("price", ["-1", "NaN", "inf", "1e9", "free", "4.50 or 5", "--", "£-2"])
def test_a_broken_price_is_set_aside(tmp_path, price):
    make_folder(
        tmp_path, INLINE + 'price = "price"\n', copy=f"who,what,copy,title,price\nu,p,c,t,{price}\n"
    )
    assert reasons(load_shop(tmp_path, allow_empty=True))[0].startswith(
        "copy.csv:2: price: not a price"
    )


def test_copy_with_personal_data_is_set_aside_and_other_text_is_masked(tmp_path):
    make_folder(
        tmp_path,
        SHOP + ROWS + PRODUCTS + SHOPPERS,
        copy="who,what,copy\nu1,p1,Fine.\nu1,p1,Call 138 1234 5678 now.\n",
        products="id,name,price\np1,Mug by a.weaver@example.org,4\n",
        shoppers='id,likes\nu1,"tea, 14 Old Mill Lane"\n',
    )
    shop = load_shop(tmp_path)
    (reject,) = shop.rejects
    assert (reject.line, reject.reason) == (3, "copy: personal data (phone)")
    (row,) = shop.rows
    assert row.request.title == "Mug by [email]"
    assert row.request.shopper == "tea, [address]"


@pytest.mark.parametrize("price", ["", "0", "12.50", "£12.50", "1.299,00 €", "CNY 50", "50元"])
def test_usual_ways_to_write_a_price_are_taken(tmp_path, price):
    make_folder(
        tmp_path,
        INLINE + 'price = "price"\n',
        copy=f'who,what,copy,title,price\nu,p,c,t,"{price}"\n',
    )
    assert [row.request.price for row in load_shop(tmp_path).rows] == [price]


def test_side_tables_keep_the_first_of_two_rows_and_events_are_counted(tmp_path):
    make_folder(
        tmp_path,
        SHOP + ROWS + PRODUCTS + EVENTS,
        copy="who,what,copy\nu1,p1,Good.\n",
        products="id,name,price\np1,Mug,4\np1,Pot,4\n",
        events="who,what,did,at\n"
        "u1,p1,view,2025-03-01T10:00:00Z\nu1,p1,PV,1740823200\nu1,p1,buy,\n"
        "u1,p1,sniffed,\nu1,p1,view,soon\nu1,p7,view,\n",
    )
    shop = load_shop(tmp_path)
    assert shop.rows[0].request.title == "Mug"
    assert shop.events == {"purchase": 1, "view": 1}
    assert reasons(shop) == [
        "products.csv:3: id: the same as on line 2; the first one stands",
        "events.csv:3: the same row as line 2",  # the same moment, written otherwise
        "events.csv:5: did: not a kind of event; use view, search, cart, favourite, purchase, rating",
        "events.csv:6: at: not a time; use ISO 8601 or seconds since 1970",
        "events.csv:7: what: not in products.csv",
    ]


TOLD = EVENTS + 'search = "words"\nrating = "stars"\n'


def test_an_event_sent_twice_counts_once_and_one_done_again_twice(tmp_path):
    bought = "u1,p1,buy,2025-03-01T10:00:00Z,,\n"
    make_folder(
        tmp_path,
        SHOP + ROWS + PRODUCTS + TOLD,
        copy="who,what,copy\nu1,p1,Good.\n",
        products="id,name,price\np1,Mug,4\np2,Pot,4\n",
        events=f"who,what,did,at,words,stars\n{bought * 3}"
        f"{bought.replace('10:00:00', '10:00:01')}{bought.replace('p1', 'p2')}"
        f"{bought.replace('u1', 'u2')}{bought.replace('buy', 'view')}"
        "u1,,search,2025-03-01,red mug,\nu1,,search,2025-03-01,blue mug,\n"
        "u1,,search,2025-03-01,red  mug,\n",
    )
    shop = load_shop(tmp_path)
    assert shop.events == {"purchase": 4, "search": 2, "view": 1}
    assert reasons(shop) == [
        "events.csv:3: the same row as line 2",
        "events.csv:4: the same row as line 2",
        "events.csv:11: the same row as line 9",
    ]


def test_a_search_needs_words_and_a_rating_a_number(tmp_path):
    events = (
        "who,what,did,at,words,stars\nu1,,search,,red mug,\nu1,,search,,,\n"
        "u1,p1,rating,,,4.5\nu1,p1,rating,,,\nu1,p1,rating,,,good\nu1,,rating,,,4\nu1,,view,,,\n"
        "u1,p9,search,,call 138 1234 5678,\n"
    )
    tables = {"copy": "who,what,copy\nu1,p1,Good.\n", "products": "id,name,price\np1,Mug,4\n"}
    make_folder(tmp_path, SHOP + ROWS + PRODUCTS + TOLD, events=events, **tables)
    shop = load_shop(tmp_path)
    assert shop.events == {"rating": 1, "search": 2}
    assert shop.masked == {"phone": 1}
    assert reasons(shop) == [
        "events.csv:3: words: empty",
        "events.csv:5: stars: empty",
        "events.csv:6: stars: not a rating (a number)",
        "events.csv:7: what: empty",
        "events.csv:8: what: empty",
    ]
    make_folder(tmp_path, SHOP + ROWS + PRODUCTS + EVENTS, events=events, **tables)
    assert reasons(load_shop(tmp_path))[0] == (
        "events.csv:2: a search without its column: name it as events.search"
    )


def test_rows_of_other_shops_are_left_alone_but_rows_nobody_can_place_are_not(tmp_path):
    make_folder(
        tmp_path,
        INLINE + 'where = { shop = "a" }\n',
        copy="shop,who,what,title,copy\na,u,p,t,mine\nb,u,p,t,theirs\n,u,p,t,whose\na,u\n",
    )
    shop = load_shop(tmp_path)
    assert [row.text for row in shop.rows] == ["mine"]
    assert shop.n_read == 3
    assert [reject.line for reject in shop.rejects] == [4, 5]
    assert all("cannot be told" in reject.reason for reject in shop.rejects)


# Python's csv leaves a lone \r unquoted when it writes, and then reads it as the end of a row.
word = st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=6)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(st.lists(word, min_size=2, max_size=5), max_size=12))
def test_usable_and_rejected_rows_are_all_rows(rows):
    with tempfile.TemporaryDirectory() as name:
        folder = make_folder(Path(name), INLINE)
        with (folder / "copy.csv").open("w", newline="", encoding="utf-8") as out:
            csv.writer(out, lineterminator="\n").writerows(
                [["who", "what", "title", "copy"], *rows]
            )
        shop = load_shop(folder, allow_empty=True)

    assert len(shop.rows) + len(shop.rejects) == shop.n_read == len(rows)
    assert len(set(shop.rows)) == len(shop.rows)
    assert sum(map(len, shop.by_user.values())) == len(shop.rows)
    assert all(row.user and row.item and row.text and row.request.title for row in shop.rows)


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("[shop", "shop.toml: not valid TOML"),
        (ROWS, r"shop.toml: \[shop\] is missing"),
        (SHOP, r"shop.toml: \[rows\] is missing"),
        ('[shop]\nname = "x"\n' + ROWS, "shop.id is missing"),
        ('[shop]\nid = "Corner Shop"\n' + ROWS, "shop.id: 'Corner Shop' is not a shop id"),
        ('[shop]\nid = "x"\n' + ROWS, "shop.id: 'x' is not a shop id"),
        ('[shop]\nid = "xy"\nscenario = "poem"\n' + ROWS, "shop.scenario: 'poem' is not one of"),
        ('[shop]\nid = "xy"\nlanguage = "English!"\n' + ROWS, "shop.language: 'English!' is no"),
        ('[shop]\nid = "xy"\nname = "a\\nb"\n' + ROWS, "shop.name: must be one line"),
        ("[shop]\nid = 3\n" + ROWS, "shop.id must be a text in quotes"),
        (SHOP + 'slogan = "x"\n' + ROWS, "unknown key shop.slogan; known: id, name"),
        ("colour = 1\n" + INLINE, "unknown key colour; known: shop, rows"),
        (INLINE + 'titel = "x"\n', "unknown key rows.titel; known: file, where, user, item, text"),
        (SHOP + ROWS, "no title: name the column .* as rows.title or products.title"),
        (SHOP + ROWS.replace('user = "who"\n', ""), "rows.user is missing"),
        (
            INLINE.replace('"who"', '"whom"'),
            "rows.user: copy.csv has no column 'whom'; it has who, what, title, copy",
        ),
        (INLINE + 'where = { shop = "a" }\n', "rows.where: copy.csv has no column 'shop'; it has"),
        (INLINE + 'where = "a"\n', "rows.where must be a table such as"),
        (INLINE.replace("copy.csv", "gone.csv"), "gone.csv: no such file"),
        (INLINE.replace("copy.csv", "copy.xls"), "unknown kind of table"),
        (INLINE + SHOPPERS, "shoppers.csv: no such file"),
    ],
)
def test_a_description_that_cannot_be_used_names_the_key(tmp_path, toml, message):
    make_folder(tmp_path, toml, copy="who,what,title,copy\nu,p,t,c\n")
    with pytest.raises(InputError, match=message):
        load_shop(tmp_path)


def test_an_absolute_file_name_is_read_where_it_lies(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "shop").mkdir()
    table = tmp_path / "data" / "copy.csv"
    table.write_text("who,what,title,copy\nu,p,t,c\n")
    make_folder(tmp_path / "shop", INLINE.replace("copy.csv", table.as_posix()))
    assert len(load_shop(tmp_path / "shop").rows) == 1


def test_a_shop_without_a_usable_row_is_refused_unless_asked_for(tmp_path):
    make_folder(tmp_path, INLINE, copy="who,what,title,copy\n,,,\n")
    with pytest.raises(InputError, match=r"corner-shop has no usable row \(1 read, 1 set aside\)"):
        load_shop(tmp_path)
    assert load_shop(tmp_path, allow_empty=True).rows == ()
    with pytest.raises(InputError, match=r"shop.toml: no such file"):
        load_shop(tmp_path / "elsewhere" / "shop.toml")


@settings(deadline=None)  # a busy machine is no failure
@given(st.integers(2, 80), st.floats(0.05, 0.6), st.text(max_size=5))
def test_no_shopper_is_on_both_sides_and_none_is_lost(n_users, fraction, label):
    shop = invented(n_users)
    try:
        train, held_out = split_users(shop, held_out_fraction=fraction, seed_label=label)
    except InputError as error:
        assert "one side stays empty" in str(error)  # noqa: PT017  only small shops may end here
        assert n_users < 80 or fraction < 0.2
        return
    assert not train.by_user.keys() & held_out.by_user.keys()
    assert train.by_user | held_out.by_user == shop.by_user


def test_a_split_follows_from_the_shopper_alone():
    _, few = split_users(invented(200), held_out_fraction=0.2, seed_label="s")
    _, many = split_users(invented(400, order=-1), held_out_fraction=0.2, seed_label="s")
    _, other = split_users(invented(200), held_out_fraction=0.2, seed_label="t")
    _, larger = split_users(invented(200), held_out_fraction=0.3, seed_label="s")

    assert few.by_user.keys() == {u for u in many.by_user if int(u[1:]) < 200}
    assert few.by_user.keys() != other.by_user.keys()
    assert few.by_user.keys() < larger.by_user.keys()
    # The exact shoppers: a change of the hash would mix trained and held-out shoppers.
    assert sorted(few.by_user)[:4] == ["u114", "u118", "u12", "u127"]
    assert 20 <= len(few.by_user) <= 60


def test_nothing_held_out_is_a_split_too():
    train, held_out = split_users(invented(3), held_out_fraction=0.0, seed_label="s")
    assert (len(train.by_user), len(held_out.by_user)) == (3, 0)
    with pytest.raises(InputError, match=r"held_out_fraction=1.0 is not in"):
        split_users(invented(3), held_out_fraction=1.0, seed_label="s")


def test_the_reject_file_keeps_the_row_as_it_was_for_its_owner_only(tmp_path):
    make_folder(tmp_path, INLINE, copy="who,what,title,copy\nu,p,t,c\nü,\udcff\n")
    shop = load_shop(tmp_path)
    file = tmp_path / "deep" / "rejects.jsonl"
    with RejectFile(file) as out:
        for reject in shop.rejects:
            out.add(shop.info.id, reject)
        assert not file.exists()  # replaced in one step
        assert out.finish() == file

    (line,) = file.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {
        "shop": "corner-shop",
        "table": "rows",
        "file": str(tmp_path / "copy.csv"),
        "line": 3,
        "reason": "not valid UTF-8",
        "row": "ü,\udcff",
    }
    assert file.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in file.parent.iterdir()] == ["rejects.jsonl"]
