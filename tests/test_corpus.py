"""The corpus: its file, both of its formats, tokens, vocabulary, windows and samples."""

import re

import numpy as np
import pytest

import quatrains
from conftest import ROOT
from quatrains import Settings, index_corpus, make_windows, normalize, tokenize

BUNDLED = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")


def read(path, content):
    path.write_bytes(content.encode())
    return quatrains.read_corpus(path)


def test_bundled_corpus_has_all_quatrains_typed_as_its_readme_says():
    sizes = dict.fromkeys("I II III IV V VI VII VIII IX X".split(), 100) | {"VII": 42}
    assert [number for number, _ in BUNDLED] == [
        f"{name}.{number}" for name, size in sizes.items() for number in range(1, size + 1)
    ]
    for _, quatrain in BUNDLED:
        assert re.fullmatch(r"[A-Za-z' .,;!?\n-]+", quatrain)
        assert quatrain[-1] in ".!?"
        assert [line[0].isupper() for line in quatrain.split("\n")] == [True] * 4
        assert not re.search(r" [.,;!?]|[.,;!?][A-Za-z]|  ", quatrain)


def test_bundled_corpus_counts():
    corpus = index_corpus(BUNDLED)
    assert sum(map(len, corpus.tokens)) == 35_884
    assert len(corpus.vocabulary) == 5_391 + 1
    # A quatrain of n tokens gives n + 2 - 4 samples, and n + 1 if whole.
    for whole, count in ((False, 35_884 - 2 * 942), (True, 35_884 + 942)):
        settings = Settings(phrase_len=4, whole_quatrains=whole)
        sizes = [len(targets) for _, targets, _ in quatrains.make_samples(corpus, settings)]
        assert sizes == [count * 95 // 100, count - count * 95 // 100]


TOKENS = {
    "A milk-white (tripod's) .mars; M.D.: who?!": "a milk-white tripod's . mars ; m . d . who ? !",
    "“Two”—three/#4 5% _six_": "two three 4 5 six",
    # Two or more hyphens or dots, and all other dashes, part words.
    "the sea--and -- - so... far -- -- he… 1555–1568": "the sea and so far he 1555 1568",
    "'twas o'er th' fields, lovin' ' ''him'' 'n'": "'twas o'er th' fields , lovin' him 'n'",
    # Curly apostrophes are straight, and curly quotes are none.
    "l’été ‘a king’s’ ’Tis o’": "l'été a king's 'tis o'",
    "well‐read twenty‑two": "well-read twenty-two",
    "¡Ay! «Oui» „Ja“ ´x´ y―z ★ 👨\u200d👩": "ay ! oui ja x y z",
    "مهر، وفا؛ کجا؟ یار۔": ("مهر ، وفا ؛ کجا ؟ یار ۔"),
    "दिल है॥": "दिल है ॥",
    "ሰላም። აბ": "ሰላም ። აბ",
    "春眠不觉晓；雪 3日。": "春 眠 不 觉 晓 ； 雪 3 日 。",
    "古池や、カエル": "古 池 や 、 カ エ ル",
}


@pytest.mark.parametrize(("text", "tokens"), TOKENS.items())
def test_marks_are_tokens_and_what_spells_words_stays(text, tokens):
    assert tokenize(normalize(text)) == tokens.split()


def test_both_normal_forms_are_one_word_and_joiners_stay():
    persian = "می\u200cخواهم"
    assert tokenize(normalize(f"{persian} Ét e\u0301t")) == [persian, "ét", "ét"]


def test_line_ends_are_numbered_tokens_up_to_the_twentieth():
    text = "One two,\nThree.\n\n\nFour five!"
    assert tokenize(text, line_ends=True) == "one two , <LINE1> three . <LINE2> four five !".split()
    assert tokenize(text) == "one two , three . four five !".split()
    assert tokenize(normalize("<LINE1> a"), line_ends=True) == ["line1", "a"]
    ends = tokenize("\n".join("a" * 40), line_ends=True)[1::2]
    assert ends == [*(f"<LINE{n}>" for n in range(1, 20)), *["<LINE20>"] * 20]


def test_token_ids_are_assigned_by_descending_frequency_and_the_break_is_0():
    corpus = index_corpus([("1", "b a\na"), ("2", "c a b\na")], line_ends=True)
    assert corpus.tokens == [["b", "a", "<LINE1>", "a"], ["c", "a", "b", "<LINE1>", "a"]]
    assert corpus.vocabulary == ["<BREAK>", "a", "b", "<LINE1>", "c"]
    assert corpus.counts.tolist() == [1, 4, 2, 2, 1]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("phrase_len", [1, 4, 9, 100])
def test_windows_are_those_of_a_plain_search(phrase_len, whole):
    # The last quatrain is short, and the longest phrase is longer than any quatrain.
    corpus = index_corpus([*BUNDLED[:30], ("0", "end.")])
    before = [0] * phrase_len if whole else [0]
    rows = [[*before, *map(corpus.vocabulary.index, tokens), 0] for tokens in corpus.tokens]
    size = phrase_len + 1
    every = [row[end - size : end] for row in rows for end in range(size, len(row) + 1)]
    shuffled = make_windows(corpus, phrase_len, whole).tolist()
    assert shuffled != every or not every
    assert sorted(shuffled) == sorted(every)


def test_the_validation_targets_depend_only_on_the_corpus():
    corpus = index_corpus([(str(i), f"w{i} x{i} y{i} z{i}") for i in range(50)])
    targets = make_windows(corpus, 1, True)[:, -1].tolist()
    assert make_windows(corpus, 8, True)[:, -1].tolist() == targets
    # As published, a quatrain's first word is no target if phrases are longer than one token.
    firsts = {corpus.vocabulary.index(f"w{i}") for i in range(50)}
    later = [token_id for token_id in targets if token_id not in firsts]
    assert make_windows(corpus, 2, False)[:, -1].tolist() == later


@pytest.mark.parametrize(("class_weights", "root"), [(True, 150**0.5), (False, 1)])
def test_samples_are_split_and_weighted(class_weights, root):
    corpus = index_corpus([(str(i), f"w{i} the x{i} the y{i} the") for i in range(50)])
    settings = Settings(phrase_len=4, class_weights=class_weights)
    samples = quatrains.make_samples(corpus, settings)
    # Each quatrain has six words and two breaks.
    assert [len(targets) for _, targets, _ in samples] == [190, 50 * (6 + 2 - 4) - 190]
    halves = [np.hstack([phrases, targets]) for phrases, targets, _ in samples]
    assert np.array_equal(np.vstack(halves), make_windows(corpus, 4, False))
    the = corpus.vocabulary.index("the")
    for phrases, targets, weights in samples:
        assert (phrases.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
        assert weights == pytest.approx(np.where(targets[:, 0] == the, root, 1))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, end):
    content = f"\ufeffOne{end}two{end}{end}Three{end}four"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One\ntwo"), ("2", "Three\nfour")]


@pytest.mark.parametrize("space", [*"\f\v\x1c\x85\u2028\t\xa0\u3000\u200b"], ids=ascii)
def test_every_space_separates_words_and_only_line_ends_separate_lines(tmp_path, space):
    lines = ["1 2", " ", "# III ", " Three ", " # a comment ", "four", " "]
    content = "\n".join(lines).replace(" ", space)
    assert read(tmp_path / "corpus.txt", content) == [("1", "1 2"), ("III.1", "Three\nfour")]


@pytest.mark.parametrize("hidden", [*"\x07\x1b\x7f\u2060\u202e\xad\ufeff"], ids=ascii)
def test_invisible_characters_are_removed_and_separate_nothing(tmp_path, hidden):
    content = f"{hidden}One tw{hidden}o,{hidden}\n{hidden}\nThree{hidden}\n"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One two,"), ("2", "Three")]
    assert normalize(f"d{hidden}’{hidden}or e{hidden}\u0301t") == "d'or ét"


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_headings_name_the_quatrains_after_them_and_are_none(tmp_path, gap):
    lines = ["# By hand", "One #1 # I", "# Book 2", "C and #", "#", "#hash tags", "# Canto IX."]
    lines += ["4 and", "# You and V", "# Poems of 1862", "Sonnet XII.", "x", "13", "y", "Part. 3"]
    expected = {"1": "One #1 # I", "2.1": "C and #", "2.2": "#hash tags", "IX.1": "4 and"}
    expected |= {"XII.1": "x", "13.1": "y", "13.2": "Part. 3"}
    assert read(tmp_path / "numbered.txt", gap.join(lines)) == [*expected.items()]


def test_a_numeral_within_a_quatrain_is_none_of_its_headings(tmp_path):
    content = "# I\nOne\n# a comment\nX\ntwo\n\nVI\n\nthree"
    expected = [("I.1", "One\nX\ntwo"), ("VI.1", "three")]
    assert read(tmp_path / "within.txt", content) == expected


BOOK = """Title: Odes

*** START OF THE PROJECT GUTENBERG EBOOK ODES,
BY SOMEONE ***

One

two

*** END OF THE PROJECT GUTENBERG EBOOK ODES ***

Section 1. The license
"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_the_book_in_a_gutenberg_file_is_read_and_a_line_says_so(tmp_path, capsys, end):
    quatrains_read = read(tmp_path / "book.txt", BOOK.replace("\n", end))
    assert quatrains_read == [("1", "One"), ("2", "two")]
    assert "Gutenberg" in capsys.readouterr().out
    read(tmp_path / "plain.txt", "One\n\ntwo")
    assert capsys.readouterr().out == ""


MARKUP = {
    "objects": '[\n  {"title": "Ode", "lines": ["one two"]}\n]',
    "lines of JSON": '{"poem": "one"}\n{"poem": "two"}',
    "CSV": "author,poem\nme,One two\n",
    "semicolons": '"id";"text"\n1;One',
    "tabs": "id\tpoem_text\n1\tOne two",
    "escapes": "title one, Song one two\\nverse three",
    "a page": "<!DOCTYPE html><p>One",
    "tags": "One two<br />\nthree",
    "XML": "One <l>two</l>",
}


@pytest.mark.parametrize("content", MARKUP.values(), ids=MARKUP)
def test_markup_is_refused(tmp_path, content):
    with pytest.raises(
        quatrains.UsageError, match=r"markup.txt looks like .*: set corpus to plain"
    ):
        read(tmp_path / "markup.txt", content)


@pytest.mark.parametrize(
    "first", ["[Chorus]", "Go, love, go", "Rain; rain", "{whispered} ah", "<3"]
)
def test_verse_is_no_markup(tmp_path, first):
    assert len(read(tmp_path / "verse.txt", f"{first}\ntwo\n\nthree")) == 2


def describe(*texts, **settings):
    settings = quatrains.make_settings(corpus="mine.txt", **settings)
    corpus = index_corpus(
        [(f"{n}", text) for n, text in enumerate(texts)], settings.whole_quatrains
    )
    return quatrains.describe_corpus(corpus, settings)


def test_the_start_says_what_a_corpus_has_and_what_may_need_a_change():
    verse = "One, two\nthree four."
    for recipe in quatrains.RECIPES:
        assert describe(*[verse] * 9, recipe=recipe)[1:] == []
    counted = "mine.txt has 2 quatrains, 12 tokens, 6 distinct words."
    assert describe(verse, verse, recipe="2017") == [f"Corpus: {counted}"]
    # Line ends are no words.
    assert describe(verse, verse, recipe="verse")[0] == f"Corpus: {counted}"
    titles = describe(*["An Ode", verse, "Spring!", verse, verse])
    assert [line for line in titles if "put `# ` before" in line] == titles[1:]
    sonnet = "\n".join(["one two three four five six"] * 14)
    assert describe(sonnet, recipe="2017")[1:] == []
    (note,) = describe(sonnet, sonnet, verse, recipe="verse")[1:]
    assert "max_length = 64" in note
    fitting = int(re.search(r"set max_length = (\d+)", note)[1])
    assert fitting == 14 * 6 + 13 + 1
    assert describe(sonnet, sonnet, verse, recipe="verse", max_length=fitting)[1:] == []
    (note,) = describe(verse, "word " * 1200, verse)[1:]
    assert note.startswith("Quatrain 1 has 1,200 tokens")
    thai = "กาลครั้งหนึ่งนานมาแล้ว พระองค์ทรงตรัสกับประชาชน ดวงจันทร์ส่องแสงเหนือแม่น้ำ"
    (note,) = describe(thai)[1:]
    assert "put spaces between words" in note
