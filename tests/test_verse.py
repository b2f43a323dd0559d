"""Verse: learning capitals, splitting and wrapping lines, and formatting them."""

import random
import re

import pytest

import quatrains
from conftest import ROOT
from quatrains import STARTS, Casing, learn_casing, normalize, split_lines, tokenize, wrap_lines


def format_verse(tokens, forms=()):
    return quatrains.format_verse(split_lines(tokens), Casing(dict(forms), {*STARTS}))


def learn(*texts):
    return learn_casing([*enumerate(map(normalize, texts))])


def changed(*texts):
    """Return the usual forms that are not in lower case."""
    return {word: form for word, form in learn(*texts).forms.items() if word != form}


def restore(text, casing):
    return quatrains.format_verse(split_lines(tokenize(text, line_ends=True)), casing)


def test_usual_forms_are_learned_inside_lines_and_sentences():
    texts = ["The king of Rome, Mars,\nNear the river Po. The snake", "King Mars at PAU,\nMars!"]
    assert changed(*texts) == {"rome": "Rome", "mars": "Mars", "po": "Po", "pau": "PAU"}
    assert changed("a Moon, a moon, a moon\nthe Sun the Sun the sun") == {"sun": "Sun"}


def test_inner_capitals_count_at_starts():
    texts = ["XLII days\nMcKay saw\n'Til noon\nL'Aquila", "FROM far\nWe go. O'Neill"]
    names = {"xlii": "XLII", "mckay": "McKay", "l'aquila": "L'Aquila", "o'neill": "O'Neill"}
    assert changed(*texts) == names | {"from": "FROM"}
    assert format_verse(["xlii", "<LINE1>", "'til", "noon"], names) == "XLII\n'Til noon"


def test_lines_in_capitals_do_not_count():
    assert learn("JULIET OF ROME, 1\nmy dove\nO 2!", "ÉTÉ! 봄 OK").forms.keys() == {"dove"}
    assert "\n" not in learn("we\nGO\nGO\nwe").before_capitals


def test_turkish_capitals_are_learned():
    texts = ["Kuşum İzmir, izmir İzmir", "kıyı ince\nİnce kum, ince"]
    assert changed(*texts) == {"izmir": "İzmir"}
    assert restore("izmir\nizmir", learn(*texts)) == "İzmir\nİzmir"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["We go\nwe stay\nwe sing", "Again\nwe go"], "Ay! We\nwe. We"),
        (["Wir gehn. Ei! wir\nWir gehn. Oh! wir bleiben\nWir"], "Ay! we\nWe. We"),
        (["wir gehn. wir bleiben! wir", "wir. ei! ja\nwir"], "ay! we\nwe. we"),
        # Marks and scripts without case have no vote.
        (["Go!!! Go!!!\nGo"], "Ay! We\nWe. We"),
        (["봄 go! 봄. 봄! 3 봄\n봄 go\nGo. 봄\n봄! Go"], "Ay! We\nWe. We"),
        (["봄이 와\n봄이 가\n봄"], "Ay! We\nWe. We"),
    ],
)
def test_capitals_follow_what_they_mostly_follow_in_the_corpus(texts, expected):
    assert restore("ay!we\nwe.we", learn(*texts)) == expected


def test_verse_is_restored():
    corpus = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")
    casing, texts = learn_casing(corpus), [text for _, text in corpus]
    restored = [restore(text, casing) for text in texts]
    assert [text.lower() for text in restored] == [text.lower() for text in texts]
    # Some words are written in two ways, or occur only at the start of a line.
    assert sum(map(str.__eq__, restored, texts)) > 0.9 * len(texts)
    for text in ("床前明，\n疑是。", "दिल है।\nक्या?", "مهر، وفا؛\nکجا؟"):
        assert restore(text, learn(text)) == text


def test_sentences_lines_and_names_get_capitals():
    tokens = "the king dies in rome ! who <LINE1> knows ? pau shall fall , and mars rules .".split()
    forms = {"rome": "Rome", "mars": "Mars", "pau": "PAU"}
    text = "The king dies in Rome! Who\nKnows? PAU shall fall, and Mars rules."
    assert format_verse(tokens, forms) == text
    # A ligature, a digraph, and Georgian, which has no title case.
    for word, text in (("ﬁr", "Fir"), ("ǆep", "ǅep"), ("ა", "ა")):
        assert format_verse([word, "<LINE1>", word]) == f"{text}\n{text}"


def test_lines_are_those_sampled_and_none_starts_with_punctuation():
    tokens = ", <LINE1> king , <LINE1> , <LINE2> moon . sun ! ? <LINE3> .".split()
    assert split_lines(tokens) == [["king,"], ["moon.", "sun?"]]
    assert format_verse(tokens) == "King,\nMoon. Sun?"
    assert [format_verse(tokens) for tokens in ([], [","], ["<LINE1>", "!"])] == ["", "", ""]


def test_marks_are_single_no_word_is_lost_and_every_line_has_a_capital():
    draw = random.Random(1)
    for _ in range(2000):
        tokens = draw.choices(["a", "b", ".", ",", "<LINE1>", "<LINE2>", "?"], k=draw.randrange(20))
        verse = format_verse(tokens)
        assert not re.search(r"^[.,;!?]|[.,;!?]\s*[.,;!?]|\s[.,;!?]|\n\n", verse)
        words = [token for token in tokens if token.isalpha()]
        assert re.sub("[.,;!?]", "", verse).lower().split() == words
        assert all(line[:1].isupper() for line in verse.split("\n") if words)


def test_wrapped_lines_are_of_similar_length_and_prefer_to_end_at_punctuation():
    words = ["four"] * 16
    assert wrap_lines(words, 4) == [["four"] * 4] * 4
    assert wrap_lines(words, 2) == [["four"] * 8] * 2
    assert wrap_lines(words, 1) == [words]
    words[4] = "four,"
    assert wrap_lines(words, 4)[0] == words[:5]
    words[4:7] = ["four", "four", "four,"]
    assert wrap_lines(words, 4)[0] == words[:4]
    lines = [" | ".join(map(" ".join, wrap_lines(["a", "b,", "c"], count))) for count in range(5)]
    assert lines == ["a b, c", "a b, c", "a b, | c", "a | b, | c", "a | b, | c"]
