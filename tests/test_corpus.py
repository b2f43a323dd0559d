"""The corpus: its file, both shapes of it, tokens, vocabulary, phrases and samples."""

import re

import numpy as np
import pytest

import quatrains
from conftest import ROOT

BUNDLED = ROOT / "data" / "quatrains.txt"


def test_bundled_corpus_has_all_quatrains_of_all_centuries():
    text = BUNDLED.read_text(encoding="utf-8")
    parts = re.findall(r"^# Century (\w+)\n([^#]+)", text, flags=re.M)
    sizes = {name: len(body.strip().split("\n\n")) for name, body in parts}
    centuries = "I II III IV V VI VII VIII IX X".split()
    assert sizes == dict.fromkeys(centuries, 100) | {"VII": 42}
    assert {text.count("\n") for _, text in quatrains.read_corpus(BUNDLED)} == {3}


def test_bundled_corpus_counts():
    corpus = quatrains.load_corpus(BUNDLED)
    assert len(corpus.texts) == 942
    assert sum(map(len, corpus.tokens)) == 35_884
    assert len(corpus.words) == 5_391 + 1
    training, validation = quatrains.make_samples(corpus, 4, np.random.default_rng(0))
    # A quatrain of n words gives n + 2 - 4 samples.
    assert len(training.targets) + len(validation.targets) == 35_884 - 2 * 942
    assert (len(training.targets), len(validation.targets)) == (32_300, 1_700)


def test_bundled_corpus_is_typed_the_way_its_readme_says():
    for _, quatrain in quatrains.read_corpus(BUNDLED):
        assert re.fullmatch(r"[A-Za-z' .,;!?\n-]+", quatrain)
        assert quatrain[-1] in ".!?"
        assert all(line[0].isupper() for line in quatrain.split("\n"))
        assert not re.search(r" [.,;!?]|[.,;!?][A-Za-z]|  ", quatrain)


def test_the_example_of_2017():
    lines = (
        "The lily of the Dauphin will reach into Nancy,\n"
        "As far as Flanders the Elector of the Empire"
    )
    tokens = quatrains.tokenize(lines)
    words, _ = quatrains.build_vocabulary([tokens])
    encoded = quatrains.encode([tokens], words)[0]
    assert " ".join(words[index] for index in encoded) == (
        "<BREAK> the lily of the dauphin will reach into nancy , "
        "as far as flanders the elector of the empire <BREAK>"
    )


def test_punctuation_is_broken_out_and_the_rest_dropped():
    assert quatrains.tokenize("A milk-white (tripod's) .mars; M.D.: who?!") == (
        "a milk-white tripod's . mars ; m . d . who ? !".split()
    )
    assert quatrains.tokenize("\u201cTwo\u201d\u2014three/four\u2026 d\u2019or") == (
        "two three four d\u2019or".split()
    )


def test_words_are_numbered_by_falling_frequency_and_the_break_is_0():
    words, counts = quatrains.build_vocabulary([["b", "a", "a"], ["c", "a", "b"]])
    assert words == ["<BREAK>", "a", "b", "c"]
    assert counts.tolist() == [1, 3, 2, 1]


def test_windows_are_all_those_with_a_token_after_them():
    phrases, targets = quatrains.cut_phrases(
        [np.array([0, 1, 2, 3, 4, 0], np.int32), np.array([0, 5, 0], np.int32)], 4
    )
    assert phrases.tolist() == [[0, 1, 2, 3], [1, 2, 3, 4]]
    assert targets.tolist() == [4, 0]
    phrases, targets = quatrains.cut_phrases([np.array([0, 5, 0], np.int32)], 2)
    assert (phrases.tolist(), targets.tolist()) == ([[0, 5]], [0])


def test_samples_are_shuffled_parted_and_weighted():
    texts = [f"w{i} the x{i} the y{i} the" for i in range(50)]
    tokens = [quatrains.tokenize(text) for text in texts]
    words, counts = quatrains.build_vocabulary(tokens)
    corpus = quatrains.Corpus([], texts, tokens, words, counts)
    training, validation = quatrains.make_samples(corpus, 4, np.random.default_rng(1))
    total = 50 * (6 + 2 - 4)
    assert (len(training.targets), len(validation.targets)) == (190, total - 190)
    every = [
        tuple(quatrain[start : start + 5])
        for quatrain in quatrains.encode(tokens, words)
        for start in range(4)
    ]
    shuffled = [
        (*phrase, target)
        for phrases, targets, _ in (training, validation)
        for phrase, target in zip(phrases, targets, strict=True)
    ]
    assert shuffled != every
    assert sorted(shuffled) == sorted(every)
    the = words.index("the")
    expected = np.where(training.targets == the, np.sqrt(150), 1)
    assert training.weights == pytest.approx(expected)
    assert (training.weights[training.targets == 0] == 1).all()
    assert (validation.weights == 1).all()


def test_both_shapes_give_the_same_tokens(tmp_path):
    verse = tmp_path / "verse.txt"
    verse.write_text("# I\n\nOne two,\nThree.\n\n \nFour\nfive!\n", encoding="utf-8")
    lines = tmp_path / "lines.txt"
    lines.write_text("# I\nOne two , three .\nFour five !\n", encoding="utf-8")
    read = [
        [quatrains.tokenize(text) for _, text in quatrains.read_corpus(path)]
        for path in (verse, lines)
    ]
    assert read[0] == read[1] == [["one", "two", ",", "three", "."], ["four", "five", "!"]]


@pytest.mark.parametrize("start", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_and_byte_order_mark_do_not_matter(tmp_path, start, end):
    path = tmp_path / "corpus.txt"
    path.write_bytes((start + f"One{end}two{end}{end}Three{end}four").encode())
    assert quatrains.read_corpus(path) == [("1", "One\ntwo"), ("2", "Three\nfour")]


def test_quatrains_are_numbered_from_their_headings(tmp_path):
    numbers = [number for number, _ in quatrains.read_corpus(BUNDLED)]
    assert numbers[:2] == ["I.1", "I.2"]
    assert numbers[99:101] == ["I.100", "II.1"]
    assert numbers[600:643:42] == ["VII.1", "VIII.1"]
    assert numbers[-1] == "X.100"
    for gap in ("\n", "\n\n"):
        path = tmp_path / "numbered.txt"
        lines = ["# By hand", "One", "# Book 2", "Two", "# not a heading", "Three", "# IX", "Four"]
        path.write_text(gap.join(lines))
        read = quatrains.read_corpus(path)
        assert read == [("1", "One"), ("2.1", "Two"), ("2.2", "Three"), ("IX.1", "Four")]
