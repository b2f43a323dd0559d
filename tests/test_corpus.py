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


def test_punctuation_is_a_token_and_what_spells_words_stays():
    tokens = "a milk-white tripod's . mars ; m . d . who ? !".split()
    assert tokenize("A milk-white (tripod's) .mars; M.D.: who?!") == tokens
    assert tokenize("\u201cTwo\u201d\u2014three/#4\u2026") == ["two", "three", "4"]
    # Curly quotes between letters are apostrophes.
    text = normalize("l\u2019\u00e9t\u00e9 \u2018a kings\u2019 tripod\u2019s\u2018 o'er")
    assert tokenize(text) == ["l\u2019\u00e9t\u00e9", "a", "kings", "tripod\u2019s", "o'er"]
    # The joiner stays, and both normal forms are one word.
    persian = "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"
    assert tokenize(normalize(f"{persian} \u00c9t e\u0301t")) == [persian, "\u00e9t", "\u00e9t"]


def test_line_ends_are_numbered_tokens():
    text = "One two,\nThree.\n\u2014\nFour five!"
    assert tokenize(text, line_ends=True) == "one two , <LINE1> three . <LINE2> four five !".split()
    assert tokenize(text) == "one two , three . four five !".split()
    assert tokenize("<LINE1> a <BREAK>", line_ends=True) == ["line1", "a", "break"]


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
    assert normalize(f"d{hidden}\u2019{hidden}or e{hidden}\u0301t") == "d\u2019or \u00e9t"


@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_quatrains_are_numbered_from_headings_and_only_lines_are_comments(tmp_path, gap):
    lines = ["# By hand", "One #1 # I", "# Book 2", "C# and #", "# a comment", "Three", "# IX", "4"]
    expected = [("1", "One #1 # I"), ("2.1", "C# and #"), ("2.2", "Three"), ("IX.1", "4")]
    assert read(tmp_path / "numbered.txt", gap.join(lines)) == expected
