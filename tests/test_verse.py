"""Restoring what was drawn to verse."""

import quatrains
from quatrains import break_lines, format_quatrain, learn_spelling

QUATRAINS = [
    "The king of Rome, Mars,\nNear the river Po. The snake",
    "King Mars at the snake, at PAU,\nThe end of\nMars!",
]


def test_capitals_are_learnt_only_where_they_mean_something():
    capitals, _ = learn_spelling(QUATRAINS)
    assert capitals == {"rome": "Rome", "mars": "Mars", "po": "Po", "pau": "PAU"}


def test_the_usual_form_wins():
    capitals, _ = learn_spelling(["a Moon, a moon, a moon", "the Sun the Sun the sun"])
    assert capitals == {"sun": "Sun"}


def test_line_ends_are_those_of_the_corpus():
    _, line_ends = learn_spelling(QUATRAINS)
    assert line_ends == {",", "snake", "of", "!"}


def test_a_quatrain_of_the_corpus_comes_back_as_it_was():
    texts = [
        "Out of the sunrise comes the Punic heart\n"
        "To vex Hadrie and the sons of Romulus,\n"
        "With the Libyan fleet at his side.\n"
        "Malta shudders and the isles about it lie empty."
    ]
    capitals, line_ends = learn_spelling([*texts, "near Malta"])
    lines = break_lines(quatrains.tokenize(texts[0]), line_ends)
    assert format_quatrain(lines, capitals) == texts[0]


def test_sentences_lines_and_names_get_capitals():
    tokens = "the king dies in rome ! who knows ? pau shall fall , and mars rules all .".split()
    capitals = {"rome": "Rome", "mars": "Mars", "pau": "PAU"}
    formatted = format_quatrain(break_lines(tokens, set()), capitals)
    assert formatted.count("\n") == 3
    assert " ".join(formatted.split()).lower() == (
        "the king dies in rome! who knows? pau shall fall, and mars rules all."
    )
    assert "Rome!" in formatted
    assert "Who knows?" in formatted
    assert "PAU" in formatted
    assert all(line[0].isupper() for line in formatted.split("\n"))


def test_lines_never_start_with_punctuation_and_nothing_is_lost():
    for tokens in ("a , . b ! c ? ; d".split(), ["a"] * 32, "word ,".split(), ["one"], []):
        lines = break_lines(tokens, set())
        assert [token for line in lines for token in line] == tokens
        assert len(lines) == max(1, min(4, sum(token.isalpha() for token in tokens)))
        assert all(line[0] not in quatrains.PUNCTUATION for line in lines if line)


def test_lines_break_after_pauses_and_at_words_that_end_lines():
    tokens = "the great fleet comes , the old king of the north dies soon".split()
    assert " ".join(break_lines(tokens, {"king", "north", ","})[0]) == "the great fleet comes ,"
    lines = break_lines("one two of six ten of now the end of all war".split(), {"two", "ten"})
    assert [line[-1] for line in lines[:2]] == ["two", "ten"]
