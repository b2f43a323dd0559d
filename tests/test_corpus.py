"""The corpus: its file, both shapes of it, tokens, vocabulary, phrases and samples."""

import re
from types import SimpleNamespace

import numpy as np
import pytest

import quatrains
from conftest import ROOT

SHAPE = SimpleNamespace(phrase_len=4, padding=False, weighted=True)
BUNDLED = ROOT / "data" / "quatrains.txt"


def test_bundled_corpus_has_all_quatrains_of_all_centuries():
    text = BUNDLED.read_text(encoding="utf-8")
    parts = re.findall(r"^# Century (\w+)\n([^#]+)", text, flags=re.M)
    sizes = {name: len(body.strip().split("\n\n")) for name, body in parts}
    centuries = "I II III IV V VI VII VIII IX X".split()
    assert sizes == dict.fromkeys(centuries, 100) | {"VII": 42}
    assert {text.count("\n") for _, text in quatrains.read_corpus(BUNDLED)} == {3}


def test_bundled_corpus_counts():
    corpus = quatrains.index_corpus(quatrains.read_corpus(BUNDLED))
    assert len(corpus.texts) == 942
    assert sum(map(len, corpus.tokens)) == 35_884
    assert len(corpus.words) == 5_391 + 1
    samples = quatrains.make_samples(corpus, SHAPE, np.random.default_rng(0))
    # A quatrain of n words gives n + 2 - 4 samples.
    assert sum(len(targets) for _, targets, _ in samples) == 35_884 - 2 * 942
    assert [len(targets) for _, targets, _ in samples] == [32_300, 1_700]


def test_bundled_corpus_is_typed_the_way_its_readme_says():
    for _, quatrain in quatrains.read_corpus(BUNDLED):
        assert re.fullmatch(r"[A-Za-z' .,;!?\n-]+", quatrain)
        assert quatrain[-1] in ".!?"
        assert all(line[0].isupper() for line in quatrain.split("\n"))
        assert not re.search(r" [.,;!?]|[.,;!?][A-Za-z]|  ", quatrain)


def corpus_of(*texts):
    return quatrains.index_corpus([(str(number), text) for number, text in enumerate(texts, 1)])


def read(path, content):
    path.write_bytes(content.encode())
    return quatrains.read_corpus(path)


def test_the_example_of_2017():
    corpus = corpus_of(
        "The lily of the Dauphin will reach into Nancy,\n"
        "As far as Flanders the Elector of the Empire"
    )
    phrases, targets = quatrains.cut_phrases(corpus, 19)
    assert " ".join(corpus.words[number] for number in [*phrases[0], *targets]) == (
        "<BREAK> the lily of the dauphin will reach into nancy , "
        "as far as flanders the elector of the empire <BREAK>"
    )


def test_punctuation_is_broken_out_and_the_rest_dropped():
    assert quatrains.tokenize("A milk-white (tripod's) .mars; M.D.: who?!") == (
        "a milk-white tripod's . mars ; m . d . who ? !".split()
    )
    assert quatrains.tokenize("\u201cTwo\u201d\u2014three/four\u2026") == ["two", "three", "four"]


def test_a_curly_apostrophe_between_letters_is_an_apostrophe_and_other_quotes_go(tmp_path):
    ((_, text),) = read(
        tmp_path / "one.txt", "l\u2019\u00e9t\u00e9 \u2018a kings\u2019 tripod\u2019s\u2018 o'er"
    )
    assert quatrains.tokenize(text) == [
        *("l\u2019\u00e9t\u00e9", "a", "kings", "tripod\u2019s", "o'er")
    ]


def test_words_are_numbered_by_falling_frequency_and_the_break_is_0():
    corpus = corpus_of("b a a", "c a b")
    assert corpus.words == ["<BREAK>", "a", "b", "c"]
    assert corpus.counts.tolist() == [1, 3, 2, 1]
    assert corpus.tokens == [["b", "a", "a"], ["c", "a", "b"]]
    assert (corpus.numbers, corpus.texts) == (["1", "2"], ["b a a", "c a b"])


def test_windows_are_all_those_with_a_token_after_them():
    corpus = corpus_of("a b c d", "e")
    phrases, targets = quatrains.cut_phrases(corpus, 4)
    assert phrases.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert targets.tolist() == [4, 0]
    assert (phrases.dtype, targets.dtype) == (np.int32, np.int32)
    phrases, targets = quatrains.cut_phrases(corpus_of("e"), 2)
    assert (phrases.tolist(), targets.tolist()) == ([[0, 1]], [0])
    phrases, targets = quatrains.cut_phrases(corpus, 6)
    assert (phrases.shape, targets.shape) == ((0, 6), (0,))


def test_samples_are_shuffled_parted_and_weighted():
    corpus = corpus_of(*(f"w{i} the x{i} the y{i} the" for i in range(50)))
    samples = quatrains.make_samples(corpus, SHAPE, np.random.default_rng(1))
    # Of six words and two breaks.
    assert [len(targets) for _, targets, _ in samples] == [190, 50 * (6 + 2 - 4) - 190]
    rows = [[0, *map(corpus.words.index, tokens), 0] for tokens in corpus.tokens]
    every = [tuple(row[start : start + 5]) for row in rows for start in range(4)]
    shuffled = [
        (*phrase, target)
        for phrases, targets, _ in samples
        for phrase, target in zip(phrases, targets, strict=True)
    ]
    assert shuffled != every
    assert sorted(shuffled) == sorted(every)
    the = corpus.words.index("the")
    _, targets, weights = samples[0]
    assert weights == pytest.approx(np.where(targets == the, np.sqrt(150), 1))
    assert {0, the} < {*targets}


def test_both_shapes_give_the_same_tokens(tmp_path):
    verse = read(tmp_path / "verse.txt", "# I\n\nOne two,\nThree.\n\n \nFour\nfive!\n")
    lines = read(tmp_path / "lines.txt", "# I\nOne two , three .\nFour five !\n")
    tokens = [["one", "two", ",", "three", "."], ["four", "five", "!"]]
    for numbered in (verse, lines):
        assert quatrains.index_corpus(numbered).tokens == tokens


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, start, end):
    content = start + f"One{end}two{end}{end}Three{end}four"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One\ntwo"), ("2", "Three\nfour")]


@pytest.mark.parametrize("space", "\f \v \x1c \x1e \x85 \u2028 \u2029 \t \xa0 \u3000".split(" "))
def test_nothing_but_line_ends_parts_lines(tmp_path, space):
    content = f"One{space}two\n{space}\n# III{space}\n{space}Three{space}\nfour\n"
    expected = [("1", "One two"), ("III.1", "Three\nfour")]
    assert read(tmp_path / "corpus.txt", content) == expected


@pytest.mark.parametrize(
    "hidden",
    ["\x07", "\x1b", "\x7f", "\x9b", "\u200b", "\u2060", "\u202e", "\xad", "\ufeff"],
    ids=ascii,
)
def test_what_cannot_be_seen_is_dropped(tmp_path, hidden):
    content = f"{hidden}One tw{hidden}o,{hidden}\n{hidden}\nThree{hidden}\n"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One two,"), ("2", "Three")]


def test_joiners_that_spell_words_stay(tmp_path):
    text = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert read(tmp_path / "corpus.txt", text) == [("1", text)]
    assert quatrains.tokenize(text) == [text]


def test_both_normal_forms_of_a_word_are_one(tmp_path):
    numbered = read(tmp_path / "corpus.txt", "\u00c9t\u00e9 e\u0301te\u0301\n")
    assert quatrains.index_corpus(numbered).words == [quatrains.BREAK, "\u00e9t\u00e9"]


def test_what_is_dropped_does_not_stand_between_what_belongs_together():
    for hidden in ("\xad", "\u200b", "\x07"):
        assert quatrains.clean(f"d{hidden}\u2019{hidden}or") == "d\u2019or"
        assert quatrains.clean(f"e{hidden}\u0301t") == "\u00e9t"


def test_a_number_sign_inside_a_line_is_no_comment(tmp_path):
    verse = "# Book 2\nKing #1 has\n  # a comment\nsome # signs II\n\nC# and #\n"
    expected = [("2.1", "King #1 has\nsome # signs II"), ("2.2", "C# and #")]
    assert read(tmp_path / "verse.txt", verse) == expected
    assert quatrains.tokenize(expected[0][1]) == "king 1 has some signs ii".split()
    lines = read(tmp_path / "lines.txt", "One # I\nTwo #\n# VII\nThree # 4\n")
    assert lines == [("1", "One # I"), ("2", "Two #"), ("VII.1", "Three # 4")]


def test_quatrains_are_numbered_from_their_headings(tmp_path):
    numbers = [number for number, _ in quatrains.read_corpus(BUNDLED)]
    assert numbers[:2] == ["I.1", "I.2"]
    assert numbers[99:101] == ["I.100", "II.1"]
    assert numbers[600:643:42] == ["VII.1", "VIII.1"]
    assert numbers[-1] == "X.100"
    lines = ["# By hand", "One", "# Book 2", "Two", "# not a heading", "Three", "# IX", "Four"]
    for gap in ("\n", "\n\n"):
        assert read(tmp_path / "numbered.txt", gap.join(lines)) == [
            ("1", "One"),
            ("2.1", "Two"),
            ("2.2", "Three"),
            ("IX.1", "Four"),
        ]
