"""Formatting sampled tokens as verse."""

import random
import re

import quatrains
from conftest import ROOT
from quatrains import format_verse, learn_casing, split_lines, tokenize, wrap_lines


def test_casing_is_learned_only_inside_lines_and_sentences():
    texts = ["The king of Rome, Mars,\nNear the river Po. The snake", "King Mars at PAU,\nMars!"]
    casing = learn_casing([*enumerate(texts)])
    changed = {word: form for word, form in casing.items() if word != form}
    assert changed == {"rome": "Rome", "mars": "Mars", "po": "Po", "pau": "PAU"}
    casing = learn_casing([("1", "a Moon, a moon, a moon"), ("2", "the Sun the Sun the sun")])
    assert (casing["moon"], casing["sun"]) == ("moon", "Sun")


def test_the_quatrains_of_the_corpus_are_restored():
    corpus = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")
    casing, texts = learn_casing(corpus), [text for _, text in corpus]
    restored = [format_verse(tokenize(text, line_ends=True), casing) for text in texts]
    assert [text.lower() for text in restored] == [text.lower() for text in texts]
    # Some words are written in two ways, or occur only at the start of a line.
    assert sum(map(str.__eq__, restored, texts)) > 0.9 * len(texts)


def test_sentences_lines_and_names_get_capitals():
    tokens = "the king dies in rome ! who <LINE1> knows ? pau shall fall , and mars rules .".split()
    casing = {"rome": "Rome", "mars": "Mars", "pau": "PAU"}
    text = "The king dies in Rome! Who\nKnows? PAU shall fall, and Mars rules."
    assert format_verse(tokens, casing) == text
    # A ligature, a digraph, and Georgian, which has no title case.
    for word, text in (("\ufb01r", "Fir"), ("\u01c6ep", "\u01c5ep"), ("\u10d0", "\u10d0")):
        assert format_verse([word, "<LINE1>", word], {}) == f"{text}\n{text}"


def test_lines_are_those_sampled_and_none_starts_with_punctuation():
    tokens = ", <LINE1> king , <LINE1> , <LINE2> moon . sun ! ? <LINE3> .".split()
    assert split_lines(tokens, {}) == [["King,"], ["moon.", "Sun?"]]
    assert format_verse(tokens, {}) == "King,\nMoon. Sun?"
    assert [format_verse(tokens, {}) for tokens in ([], [","], ["<LINE1>", "!"])] == ["", "", ""]


def test_marks_are_single_no_word_is_lost_and_there_are_four_lines():
    draw = random.Random(1)
    for _ in range(2000):
        kinds = draw.choice([["a", "b", ".", ",", "!"], ["a", ".", "<LINE1>", "<LINE2>", "?"]])
        tokens = draw.choices(kinds, k=draw.randrange(20))
        verse = format_verse(tokens, {})
        assert not re.search(r"^[.,;!?]|[.,;!?]\s*[.,;!?]|\s[.,;!?]|\n\n", verse)
        words = [token for token in tokens if token.isalpha()]
        assert re.sub("[.,;!?]", "", verse).lower().split() == words
        lines = verse.split("\n")
        if "<LINE1>" not in kinds:
            assert len(lines) == max(1, min(4, len(words)))
        assert all(line[:1].isupper() for line in lines if words)


def test_wrapped_lines_are_of_similar_length_and_prefer_to_end_at_punctuation():
    words = ["four"] * 16
    assert wrap_lines(words) == [["four"] * 4] * 4
    words[4] = "four,"
    assert wrap_lines(words)[0] == words[:5]
    words[4:7] = ["four", "four", "four,"]
    assert wrap_lines(words)[0] == words[:4]
