"""Formatting sampled tokens as verse."""

import random
import re

import pytest

import quatrains
from conftest import ROOT
from quatrains import STARTS, Casing, learn_casing, normalize, split_lines, tokenize, wrap_lines


def format_verse(tokens, forms=None, before_capitals=STARTS, line_count=4):
    casing = Casing(forms or {}, {*before_capitals})
    return quatrains.format_verse(tokens, casing, line_count)


def learn(*texts):
    return learn_casing([*enumerate(map(normalize, texts))])


def test_usual_forms_are_learned_inside_lines_and_sentences():
    texts = ["The king of Rome, Mars,\nNear the river Po. The snake", "King Mars at PAU,\nMars!"]
    forms = learn(*texts).forms
    changed = {word: form for word, form in forms.items() if word != form}
    assert changed == {"rome": "Rome", "mars": "Mars", "po": "Po", "pau": "PAU"}
    forms = learn("a Moon, a moon, a moon\nthe Sun the Sun the sun").forms
    assert (forms["moon"], forms["sun"]) == ("moon", "Sun")


def test_inner_capitals_count_at_starts_and_lines_in_capitals_do_not_count():
    forms = learn("XLII days\nMcKay saw\n'Til noon\nL'Aquila", "JULIET\nmy only dove").forms
    changed = {word: form for word, form in forms.items() if word != form}
    assert changed == {"xlii": "XLII", "mckay": "McKay", "l'aquila": "L'Aquila"}
    assert "juliet" not in forms
    # The first word of a poem is often in capitals, which are not its own.
    assert learn("FROM far\nWe go far", "MDCC days").forms.get("mdcc") == "MDCC"
    assert "from" not in learn("FROM far\nWe go", "FROM near").forms
    assert format_verse(["xlii", "<LINE1>", "'til", "juliet"], forms) == "XLII\n'Til juliet"


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["We go\nwe stay\nwe sing", "Again\nwe go"], "Ay! We\nwe. We"),
        (["Wir gehn. Ei! wir\nWir gehn. Oh! wir bleiben\nWir"], "Ay! we\nWe. We"),
        (["wir gehn. wir bleiben! wir", "wir. ei! ja\nwir"], "ay! we\nwe. we"),
        (["Go!!! Go!!!\nGo"], "Ay! We\nWe. We"),
    ],
)
def test_capitals_follow_what_they_mostly_follow_in_the_corpus(texts, expected):
    tokens = "ay ! we <LINE1> we . we".split()
    assert quatrains.format_verse(tokens, learn(*texts), 4) == expected


def test_the_quatrains_of_the_corpus_are_restored():
    corpus = quatrains.read_corpus(ROOT / "data" / "quatrains.txt")
    casing, texts = learn_casing(corpus), [text for _, text in corpus]
    restored = [quatrains.format_verse(tokenize(text, line_ends=True), casing, 1) for text in texts]
    assert [text.lower() for text in restored] == [text.lower() for text in texts]
    # Some words are written in two ways, or occur only at the start of a line.
    assert sum(map(str.__eq__, restored, texts)) > 0.9 * len(texts)


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
    assert split_lines(tokens, Casing({}, {*STARTS})) == [["King,"], ["moon.", "Sun?"]]
    assert format_verse(tokens) == "King,\nMoon. Sun?"
    assert [format_verse(tokens) for tokens in ([], [","], ["<LINE1>", "!"])] == ["", "", ""]


def test_marks_are_single_no_word_is_lost_and_there_are_four_lines():
    draw = random.Random(1)
    for _ in range(2000):
        kinds = draw.choice([["a", "b", ".", ",", "!"], ["a", ".", "<LINE1>", "<LINE2>", "?"]])
        tokens = draw.choices(kinds, k=draw.randrange(20))
        verse = format_verse(tokens)
        assert not re.search(r"^[.,;!?]|[.,;!?]\s*[.,;!?]|\s[.,;!?]|\n\n", verse)
        words = [token for token in tokens if token.isalpha()]
        assert re.sub("[.,;!?]", "", verse).lower().split() == words
        lines = verse.split("\n")
        if "<LINE1>" not in kinds:
            assert len(lines) == max(1, min(4, len(words)))
        assert all(line[:1].isupper() for line in lines if words)


def test_wrapped_lines_are_of_similar_length_and_prefer_to_end_at_punctuation():
    words = ["four"] * 16
    assert wrap_lines(words, 4) == [["four"] * 4] * 4
    assert wrap_lines(words, 2) == [["four"] * 8] * 2
    assert wrap_lines(words, 1) == [words]
    words[4] = "four,"
    assert wrap_lines(words, 4)[0] == words[:5]
    words[4:7] = ["four", "four", "four,"]
    assert wrap_lines(words, 4)[0] == words[:4]


def test_verse_without_spaces_and_in_other_scripts_keeps_its_marks():
    for text in (
        "床前明，\n疑是。",
        "दिल है।\nक्या?",
    ):
        tokens = tokenize(normalize(text), line_ends=True)
        assert quatrains.format_verse(tokens, learn(text), 1) == text
