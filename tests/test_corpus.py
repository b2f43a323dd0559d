"""The corpus: its file, other people's files, tokens, vocabulary, windows and samples."""

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
    corpus = index_corpus(BUNDLED)
    assert sum(map(len, corpus.tokens)) == 35_884
    assert len(corpus.vocabulary) == 5_391 + 1


TOKENS = {
    "A milk-white (tripod's) .mars; M: who?!": "a milk-white tripod's . mars ; m who ? !",
    "“Two”—three/#4 5% _six_": "two three 4 5 six",
    # Two or more hyphens or dots, and all other dashes, part words.
    "the sea--and -- - so... far -- -- he… 1555–1568": "the sea and so far he 1555 1568",
    "'twas o'er th' fields, lovin' ' ''him'' 'n'": "'twas o'er th' fields , lovin' him 'n'",
    # Curly apostrophes are straight, and curly quotes are none.
    "l’été ‘a king’s’ ’Tis o’": "l'été a king's 'tis o'",
    "well‐read twenty‑two": "well-read twenty-two",
    "¡Ay! «Oui» „Ja“ ´x´ y―z ★ 👨\u200d👩": "ay ! oui ja x y z",
    # Dots between single letters are left out.
    "N.A.T.O. at 5 p.m. J. S.go go.A": "nato . at 5 pm . j . s . go go . a",
    # Marks without a letter are nothing, such as those of an emoji and of a recitation.
    "sea ☀\ufe0f wind \u0301 ' - it": "sea wind it",
    "نور ۖ قمر": "نور قمر",
    # Both normal forms are one word, and joiners stay.
    "می\u200cخواهم Ét e\u0301t": "می\u200cخواهم ét ét",
    # The Turkish capital is the letter that it is in lower case.
    "İzmir I\u0307zmir izmir": "izmir izmir izmir",
    "مهر، وفا؛ کجا؟ یار۔": "مهر ، وفا ؛ کجا ؟ یار ۔",
    "दिल है॥": "दिल है ॥",
    "ሰላም። აბ": "ሰላም ። აბ",
    "春眠不觉晓；雪 3日。": "春 眠 不 觉 晓 ； 雪 3 日 。",
    "古池や、カエル": "古 池 や 、 カ エ ル",
}


@pytest.mark.parametrize(("text", "tokens"), TOKENS.items())
def test_marks_are_tokens_and_what_spells_words_stays(text, tokens):
    assert tokenize(normalize(text)) == tokens.split()


def test_line_ends_are_numbered_tokens_up_to_the_twentieth():
    text = "One two,\nThree.\nFour five!"
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
    content = f"\ufeff[All] One{end}two{end}{end}Three{end}four"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One\ntwo"), ("2", "Three\nfour")]


@pytest.mark.parametrize("space", [*"\f\v\x1c\x85\u2028\t\xa0\u3000\u200b"], ids=ascii)
def test_every_space_separates_words_and_only_line_ends_separate_lines(tmp_path, space):
    lines = ["1 b", " ", "# III ", " Three ", " # a comment ", "four", " "]
    content = "\n".join(lines).replace(" ", space)
    assert read(tmp_path / "corpus.txt", content) == [("1", "1 b"), ("III.1", "Three\nfour")]


@pytest.mark.parametrize("hidden", [*"\x07\x1b\x7f\u2060\u202e\xad\ufeff"], ids=ascii)
def test_invisible_characters_are_removed_and_separate_nothing(tmp_path, hidden):
    content = f"{hidden}One tw{hidden}o,{hidden}\n{hidden}\nThree{hidden}\n"
    assert read(tmp_path / "corpus.txt", content) == [("1", "One two,"), ("2", "Three")]
    assert normalize(f"d{hidden}’{hidden}or e{hidden}\u0301t") == "d'or ét"


START = "*** START OF THE PROJECT GUTENBERG EBOOK ODES,\nBY SOMEONE ***"
END = START.replace("START", "END")
COMMENTS = ["# By hand", "One #1 # I", "# Book 2", "C and #", "#", "#hash tags", "## X", "###"]
COMMENTS += ["# Canto V.", "4 and", "# You and V", "# Poems of 1862", "Part. 3"]
COMMENTED = "1 One #1 # I | 2.1 C and # | 2.2 #hash tags | V.1 4 and | V.2 Part. 3"
# What is in a file, and what is read: numbers and stanzas.
FILES = {
    "\n".join(COMMENTS): COMMENTED,
    "\n\n".join(COMMENTS): COMMENTED,
    "# I\nOne\n# by me\nX\ntwo\n\nthree": "I.1 One\nX\ntwo | I.2 three",
    # Books of Project Gutenberg, and a line that only looks like one of its.
    f"By me\n\n{START}\n\nOne\n*** END OF ACT ***\n{END}\nLicense 1": "1 One | 2 END OF ACT",
    f"A\n\n{START}\nOne\n\ntwo\n\n{END}\nB\n{START}\nThree\n{END}\nC": "1 One | 2 two | 3 Three",
    f"{START}\nOne\n{START.replace(' S', 'S')}\nTwo": "1 One | 2 Two",
    "A\n\n*** END OF ACT ***\n\n*** START OF ACT ***\nB": "1 A | 2 END OF ACT | 3 START OF ACT\nB",
    # Tags and entities, and what only looks like them.
    '<!DOCTYPE html>\n<p class="a b">A <i>dark</i> sea,<br>a<br />sky\n</p>': "1 A dark sea, a sky",
    "Rock&nbsp;&amp;&#32;roll,\n\n&quot;don&#39;t&quot;": "1 Rock roll, | 2 don't",
    "<<Come>> a<b, <3\n\nb>a, <come here>": "1 Come a b, 3 | 2 b a, come here",
    'Roma,amor\n"go","stay"\n\nA \\n b': "1 Roma,amor\ngo , stay | 2 A n b",
    # Labels and times in brackets, and words in brackets.
    "[All]\n\n[V 1] [x2]\nWe\n \t[Low]\nyou [all] go [Two] \n\n[I]\nX,": "1 We\nyou all go | 2 X,",
    "[ar:Me]\n[00:01.50]We go\n[00:09]\n[01:02] we stay": "1 We go | 2 we stay",
    "{all} We [go\n\n(you) stay]": "1 all We go | 2 you stay",
    # Numerals that are headings, and others.
    "XIV\nSea\nI\nrose\n\n15.\nA\nV.\n(16)\nX\n2 B": "XIV.1 Sea\nI\nrose | 15.1 A | 16.1 X\n2 B",
    "II\nThe sea\nrose\nIII.\nA wind\nblew": "II.1 The sea\nrose | III.1 A wind\nblew",
    "Ode\n\nI\n\none\n\ntwo\n\nVI.\n\nV and I": "1 Ode | I.1 one | I.2 two | VI.1 V and I",
    "Elegy XII.\n\nOne\n\nRiddle 7\n\ntwo\n\nA Riddle 8": "XII.1 One | 7.1 two | 7.2 A Riddle 8",
    "Part I\nDid I\nday 2\nI": "1 Part I | 2 Did I | 3 day 2 | 4 I",
    # Numbers in the margin, and others.
    "A,\t5\nrose    10 \n in  1666\n3   ships\t\t15 \t": "1 A, | 2 rose | 3 in 1666 | 4 3 ships",
    # Markdown, texts for GPT-2, rules, and lines without a token.
    "## An Ode\n\nOne\n### Part\ntwo\n\n#love you": "1 One\ntwo | 2 #love you",
    "<|endoftext|>One\ntwo<|endoftext|>\nthree\n<|endoftext|>": "1 One\ntwo | 2 three",
    "One\ntwo\n* * *\nthree\n=====\nfour": "1 One\ntwo | 2 three | 3 four",
    "-\nOne\n'\ntwo\n-\n\n-\n\nthree": "1 One\ntwo | 2 three",
}


@pytest.mark.parametrize(("content", "expected"), FILES.items())
def test_what_is_verse_is_read_from_files_of_many_kinds(tmp_path, content, expected):
    found = " | ".join(map(" ".join, read(tmp_path / "mine.txt", content)))
    assert re.sub(" +", " ", found) == expected


@pytest.mark.parametrize("part", " |\t|\t1|[|[]|[\t|<a |<a =|=|‘|.|a.|#|&|*** START OF".split("|"))
def test_the_time_to_read_a_line_is_proportional_to_its_length(tmp_path, part):
    # Otherwise, this would take minutes.
    for start, end in (("one", " two"), ("one [", "] two"), ("one <a ", "> two")):
        ((_, text),) = read(tmp_path / "long.txt", start + part * (100_000 // len(part)) + end)
        assert text.startswith("one")
        assert tokenize(text)[-1] == "two"


REFUSED = {
    "é".encode("latin-1"): r"cannot be read \(.*utf-8.*\): save it as UTF-8",
    rb"{\rtf1\ansi One}": "is RTF or JSON: save it as plain text",
    b'[\n  {"title": "Ode", "lines": ["one two"]}\n]': "is RTF or JSON",
    b'{"poem": "one"}\n{"poem": "two"}': "is RTF or JSON",
    b"# One\n\n12\n\n[two] <i> - ... *": "contains no words: set corpus to another",
}


@pytest.mark.parametrize(("content", "message"), REFUSED.items())
def test_files_that_cannot_be_read_are_refused_by_name(tmp_path, content, message):
    path = tmp_path / "mine.txt"
    path.write_bytes(content)
    for name, reason in (path, message), (tmp_path, "cannot"), (tmp_path / "missing", "cannot"):
        with pytest.raises(quatrains.UsageError, match=f"^corpus {name} {reason}"):
            quatrains.read_corpus(name)


def describe(capsys, *texts, **settings):
    """Return the lines that describe a corpus of some texts."""
    settings = quatrains.make_settings(corpus="mine.txt", **settings)
    corpus = index_corpus([("1", text) for text in texts], settings.whole_quatrains)
    quatrains.describe_corpus(corpus, settings)
    return capsys.readouterr().out.splitlines()


VERSE, SONNET = "One, two\nthree four.", "\n".join(["one two three four five six"] * 14)


def test_the_start_says_what_a_corpus_has_and_if_every_line_is_a_quatrain(capsys):
    # Line ends are no tokens of the text.
    counted = "Corpus: mine.txt has 2 quatrains, with a total of 12 words and punctuation marks "
    counted += "(6 distinct)."
    for recipe in quatrains.RECIPES:
        assert describe(capsys, VERSE, VERSE, recipe=recipe) == [counted]
    note = "Each quatrain is one line. If this is wrong, separate quatrains with blank lines."
    assert describe(capsys, "One two", "three")[1:] == [note]
    assert describe(capsys, "One two", VERSE)[1:] == []


def test_the_start_names_a_very_long_quatrain_if_it_matters(capsys):
    prose = "Call me,\nanyone " + "and so on " * 400
    (note,) = describe(capsys, VERSE, prose)[1:]
    start = 'Quatrain "Call me, anyone and so on and so on and ..." has '
    assert note.startswith(f"{start}{len(tokenize(prose)):,} tokens: separate quatrains with blank")
    # Among ten times as many tokens, it does little harm.
    assert describe(capsys, prose, *[VERSE] * 2000)[1:] == []
    assert describe(capsys, VERSE, "so on\n" * 400)[1:] == []
    # Without spaces, its first words are not all of it.
    assert len(describe(capsys, VERSE, "春眠不觉晓，" * 200)[1]) < 200


def test_the_start_says_if_most_quatrains_do_not_fit(capsys):
    assert describe(capsys, SONNET, recipe="2017")[1:] == []
    texts, fitting = (SONNET, SONNET, VERSE), len(tokenize(SONNET, line_ends=True))
    (note,) = describe(capsys, *texts, recipe="verse")[1:]
    assert re.search(rf"max_length = 64\b.* --max-length {fitting},", note)
    for change in (0, -1):
        notes = describe(capsys, *texts, recipe="verse", max_length=fitting + change)[1:]
        assert len(notes) == -change
