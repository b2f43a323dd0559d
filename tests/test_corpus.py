"""The corpus: its file, both shapes of it, tokens, vocabulary, phrases and samples."""

import re

import numpy as np
import pytest

import quatrains
from conftest import ROOT
from quatrains import Settings, clean, index_corpus, tokenize

BUNDLED = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")


def read(path, content):
    path.write_bytes(content.encode())
    return quatrains.read_corpus(path)


def cut(corpus, phrase_len, whole=False):
    return quatrains.cut_phrases(corpus, phrase_len, whole).tolist()


def test_bundled_corpus_has_all_quatrains_typed_the_way_its_readme_says():
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
    assert len(corpus.words) == 5_391 + 1
    # A quatrain of n words gives n + 2 - 4 samples, and whole n + 1.
    for whole, count in ((False, 35_884 - 2 * 942), (True, 35_884 + 942)):
        settings = Settings(phrase_len=4, whole_quatrains=whole)
        sizes = [len(targets) for _, targets, _ in quatrains.make_samples(corpus, settings)]
        assert sizes == [count * 95 // 100, count - count * 95 // 100]


def test_punctuation_is_broken_out_and_what_spells_words_stays():
    tokens = "a milk-white tripod's . mars ; m . d . who ? !".split()
    assert tokenize("A milk-white (tripod's) .mars; M.D.: who?!") == tokens
    assert tokenize("\u201cTwo\u201d\u2014three/four\u2026") == ["two", "three", "four"]
    # Of curly quotes those between letters are apostrophes.
    text = clean("l\u2019\u00e9t\u00e9 \u2018a kings\u2019 tripod\u2019s\u2018 o'er")
    assert tokenize(text) == ["l\u2019\u00e9t\u00e9", "a", "kings", "tripod\u2019s", "o'er"]
    # The joiner stays, and of both normal forms one.
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert tokenize(clean(f"{persian} \u00c9t e\u0301t")) == [persian, "\u00e9t", "\u00e9t"]


def test_ends_of_lines_are_tokens_by_their_number():
    text = "One two,\nThree.\n\u2014\nFour five!"
    assert tokenize(text, line_ends=True) == "one two , <LINE1> three . <LINE2> four five !".split()
    assert tokenize(text) == "one two , three . four five !".split()
    assert tokenize("<LINE1> a <BREAK>", line_ends=True) == ["line1", "a", "break"]


def test_words_are_numbered_by_falling_frequency_and_the_break_is_0():
    corpus = index_corpus([("1", "b a\na"), ("2", "c a b\na")], line_ends=True)
    assert corpus.tokens == [["b", "a", "<LINE1>", "a"], ["c", "a", "b", "<LINE1>", "a"]]
    assert corpus.words == ["<BREAK>", "a", "b", "<LINE1>", "c"]
    assert corpus.counts.tolist() == [1, 4, 2, 2, 1]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("phrase_len", [1, 4, 9, 100])
def test_windows_are_those_of_a_plain_search(phrase_len, whole):
    # The last one is short, and the longest phrase is longer than any.
    corpus = index_corpus([*BUNDLED[:30], ("0", "end.")])
    before = [0] * phrase_len if whole else [0]
    rows = [[*before, *map(corpus.words.index, tokens), 0] for tokens in corpus.tokens]
    size = phrase_len + 1
    every = [row[end - size : end] for row in rows for end in range(size, len(row) + 1)]
    shuffled = cut(corpus, phrase_len, whole)
    assert shuffled != every or not every
    assert sorted(shuffled) == sorted(every)


def test_the_same_targets_validate_whatever_the_settings():
    corpus = index_corpus([(str(i), f"w{i} x{i} y{i} z{i}") for i in range(50)])
    orders = [[row[-1] for row in cut(corpus, phrase_len, True)] for phrase_len in (1, 3, 8)]
    assert orders[0] == orders[1] == orders[2]
    # As published the first word of a quatrain is no target where phrases are longer.
    firsts = {corpus.words.index(f"w{i}") for i in range(50)}
    assert [row[-1] for row in cut(corpus, 2)] == [n for n in orders[0] if n not in firsts]


@pytest.mark.parametrize(("weighted", "root"), [(True, 150**0.5), (False, 1)])
def test_samples_are_parted_and_weighted(weighted, root):
    corpus = index_corpus([(str(i), f"w{i} the x{i} the y{i} the") for i in range(50)])
    samples = quatrains.make_samples(corpus, Settings(phrase_len=4, weighted=weighted))
    # Of six words and two breaks.
    assert [len(targets) for _, targets, _ in samples] == [190, 50 * (6 + 2 - 4) - 190]
    parts = [np.hstack([phrases, targets]).tolist() for phrases, targets, _ in samples]
    assert parts[0] + parts[1] == cut(corpus, 4)
    the = corpus.words.index("the")
    for phrases, targets, weights in samples:
        assert (phrases.dtype, targets.dtype, weights.dtype) == (np.int32, np.int32, np.float32)
        assert weights == pytest.approx(np.where(targets[:, 0] == the, root, 1))


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, start, end):
    content = start + f"One{end}two{end}{end}Three{end}four"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One\ntwo"), ("2", "Three\nfour")]


SPACES = "\f \v \x1c \x1e \x85 \u2028 \u2029 \t \xa0 \u3000 \u200b".split(" ")


@pytest.mark.parametrize("space", SPACES, ids=ascii)
def test_every_space_parts_words_and_nothing_but_line_ends_parts_lines(tmp_path, space):
    found = read(tmp_path / "it", f"1{space}2\n{space}\n# III{space}\n{space}Three{space}\nfour\n")
    assert found == [("1", "1 2"), ("III.1", "Three\nfour")]


HIDDEN = ["\x07", "\x1b", "\x7f", "\x9b", "\u2060", "\u202e", "\xad", "\ufeff"]


@pytest.mark.parametrize("hidden", HIDDEN, ids=ascii)
def test_what_cannot_be_seen_is_dropped_and_parts_nothing(tmp_path, hidden):
    content = f"{hidden}One tw{hidden}o,{hidden}\n{hidden}\nThree{hidden}\n"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One two,"), ("2", "Three")]
    assert clean(f"d{hidden}\u2019{hidden}or") == "d\u2019or"
    assert clean(f"e{hidden}\u0301t") == "\u00e9t"


def test_a_number_sign_inside_a_line_is_no_comment(tmp_path):
    verse = "# Book 2\nKing #1 has\n  # a comment\nsome # signs II\n\nC# and #\n"
    expected = [("2.1", "King #1 has\nsome # signs II"), ("2.2", "C# and #")]
    assert read(tmp_path / "verse.txt", verse) == expected
    assert tokenize(expected[0][1]) == "king 1 has some signs ii".split()
    lines = read(tmp_path / "lines.txt", "One # I\nTwo #\n# VII\nThree # 4\n")
    assert lines == [("1", "One # I"), ("2", "Two #"), ("VII.1", "Three # 4")]


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_quatrains_are_numbered_from_their_headings(tmp_path, gap):
    lines = ["# By hand", "One", "# Book 2", "Two", "# not a heading", "Three", "# IX", "Four"]
    expected = [("1", "One"), ("2.1", "Two"), ("2.2", "Three"), ("IX.1", "Four")]
    assert read(tmp_path / "numbered.txt", gap.join(lines)) == expected
