"""Restoring what was drawn to verse."""

import random
import re

import quatrains
from conftest import ROOT
from quatrains import format_verse, guess_lines, learn_capitals, part_lines, tokenize

MARK = re.compile("[.,;!?]")


def test_capitals_are_learnt_only_where_they_mean_something():
    texts = ["The king of Rome, Mars,\nNear the river Po. The snake", "King Mars at PAU,\nMars!"]
    capitals = learn_capitals([*enumerate(texts)])
    assert {word: form for word, form in capitals.items() if word != form} == {
        **{"rome": "Rome", "mars": "Mars", "po": "Po", "pau": "PAU"}
    }
    # Words that nowhere stand elsewhere.
    assert not {"near", "king."} & {*capitals}
    capitals = learn_capitals([("1", "a Moon, a moon, a moon"), ("2", "the Sun the Sun the sun")])
    assert (capitals["moon"], capitals["sun"]) == ("moon", "Sun")


def test_the_quatrains_of_the_corpus_come_back_as_they_were():
    corpus = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")
    capitals, texts = learn_capitals(corpus), [text for _, text in corpus]
    again = [format_verse(tokenize(text, line_ends=True), capitals) for text in texts]
    assert [text.lower() for text in again] == [text.lower() for text in texts]
    # But for words that are written in two ways, or never where it shows.
    assert sum(map(str.__eq__, again, texts)) > 0.9 * len(texts)


def test_sentences_lines_and_names_get_capitals():
    tokens = "the king dies in rome ! who <LINE1> knows ? pau shall fall , and mars rules .".split()
    capitals = {"rome": "Rome", "mars": "Mars", "pau": "PAU"}
    told = "The king dies in Rome! Who\nKnows? PAU shall fall, and Mars rules."
    assert format_verse(tokens, capitals) == told


# A ligature, a digraph, and Georgian, which has no capitals here.
def test_first_letters_are_in_title_case():
    # A ligature, a digraph, and Georgian, which has none.
    for word, shown in (("\ufb01r", "Fir"), ("\u01c6ep", "\u01c5ep"), ("\u10d0", "\u10d0")):
        assert format_verse([word, "<LINE1>", word], {}) == f"{shown}\n{shown}"


def test_lines_are_those_drawn_and_punctuation_starts_none():
    tokens = ", <LINE1> king , <LINE1> , <LINE2> moon . sun ! ? <LINE3> .".split()
    assert part_lines(tokens, {}) == [["King,"], ["moon.", "Sun?"]]
    assert format_verse(tokens, {}) == "King,\nMoon. Sun?"
    assert format_verse(["king"], {}) == "King"
    assert [format_verse(tokens, {}) for tokens in ([], [","], ["<LINE1>", "!"])] == ["", "", ""]


def test_two_marks_never_stand_together_and_no_word_is_lost():
    draw = random.Random(1)
    for _ in range(2000):
        kinds = draw.choice([["a", "b", ".", ",", "!"], ["a", ".", "<LINE1>", "<LINE2>", "?"]])
        tokens = draw.choices(kinds, k=draw.randrange(20))
        verse = format_verse(tokens, {})
        assert not re.search(r"^[.,;!?]|[.,;!?]\s*[.,;!?]|\s[.,;!?]|\n\n", verse)
        words = [token for token in tokens if token.isalpha()]
        assert MARK.sub("", verse).lower().split() == words
        if "<LINE1>" not in kinds:
            assert len(verse.split("\n")) == max(1, min(4, len(words)))
        assert all(line[:1].isupper() for line in verse.split("\n") if words)


def test_guessed_lines_are_of_like_length_and_pauses_count():
    words = ["four"] * 16
    assert guess_lines(words) == [["four"] * 4] * 4
    words[4] = "four,"
    assert guess_lines(words)[0] == words[:5]
    words[4:7] = ["four", "four", "four,"]
    assert guess_lines(words)[0] == words[:4]
