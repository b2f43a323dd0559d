"""What a trained model writes: quotes found and avoided, openings, and the same from a shell."""

from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import SMALL, arguments, write_verses

VERSES = (
    "# Century I\n\nThe king of Rome, he shall see\nThe moon over the sea.\n\n"
    "The queen of Rome shall see the sun\nWhen the moon is gone.\n\n"
    "# Century II\n\nThe king of Rome; he shall see no moon.\n"
)


def longest(text, corpus):
    """Quote search by trying every run of words in every quatrain."""
    words = text.split()
    runs = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    found = (run for run in runs if any(f" {' '.join(run)} " in f" {other} " for other in corpus))
    return max(map(len, found), default=0)


def test_quotes_are_those_a_plain_search_finds():
    draw = np.random.default_rng(1)
    # Words that are parts of one another: only whole ones are a quote.
    names = ["a", "an", "ana", "na", "b", "ban", "bana", "banana"]
    corpus = [" ".join(draw.choice(names, 30)) for _ in range(20)]
    source = "\n".join(f" {text} " for text in corpus)
    for _ in range(200):
        words = draw.choice([*names, "nab"], draw.integers(0, 33)).tolist()
        quote = quatrains.longest_quote(words, source)
        assert len(quote) == longest(" ".join(words), corpus)
        assert not quote or f" {' '.join(quote)} " in source
        assert not quote or f" {' '.join(quote)} " in f" {' '.join(words)} "


def test_a_quote_does_not_reach_over_the_end_of_a_quatrain():
    assert quatrains.longest_quote(list("abcd"), " a b \n c d ") == ["a", "b"]
    assert quatrains.longest_quote([], " a ") == []


@pytest.fixture(scope="module")
def prophet(tmp_path_factory):
    """An untrained model of VERSES."""
    path = tmp_path_factory.mktemp("quotes") / "verses.txt"
    path.write_text(VERSES, encoding="utf-8")
    corpus = quatrains.index_corpus(quatrains.read_corpus(path))
    quatrains.load_tensorflow(use_gpu=False)
    quatrains.keras.utils.set_random_seed(1)
    settings, _ = quatrains.read_settings(vars(quatrains), arguments(**SMALL))
    embeddings = np.random.default_rng(1).normal(0, 1, (len(corpus.words), 8)).astype(np.float32)
    return quatrains.Prophet(quatrains.build_model(embeddings, 4, settings), corpus, 4)


@pytest.mark.parametrize(
    ("text", "quote", "source"),
    [
        ("the king of rome he shall see no", "the king of rome he shall see no", "II.1"),
        (
            "sun the king of rome , he shall see the moon",
            "the king of rome he shall see the moon",
            "I.1",
        ),
        ("moon is gone the king", "moon is gone", "I.2"),
        ("sun sun", "sun", "I.2"),
    ],
)
def test_punctuation_does_not_hide_a_quote(prophet, text, quote, source):
    found = prophet.describe(list(map(prophet.corpus.words.index, text.split())))
    assert (" ".join(found.quote), found.source) == (quote, source)
    assert found.quoted == len(found.quote)
    assert found.tokens == text.split()


def test_an_empty_quatrain_quotes_nothing(prophet):
    empty = prophet.describe([])
    assert (empty.tokens, empty.verse, empty.quote, empty.source, empty.quoted) == (
        [],
        "",
        [],
        "",
        0,
    )
    assert quatrains.report_quotes([empty], 8) == "Longest quote: none."


def test_what_quotes_too_much_is_drawn_again(prophet):
    freely = prophet.write(200, seed=3)
    assert max(len(quatrain.quote) for quatrain in freely) > 2
    strictly = prophet.write(200, seed=3, max_quote=2)
    for before, after in zip(freely, strictly, strict=True):
        assert after.quoted == before.quoted == len(before.quote)
        assert len(after.quote) <= 2
        assert (after == before) == (before.quoted <= 2)
    told = quatrains.report_quotes(strictly, 2)
    again = sum(quatrain.quoted > 2 for quatrain in strictly)
    assert told.startswith("Longest quote: 2 words, ")
    assert told.endswith(f" {again} quoted more than 2 words and were drawn again.")


def test_drawing_again_has_an_end(prophet):
    written = prophet.write(3, opening="the king of rome he shall see no moon", max_quote=4, seed=1)
    assert all(len(quatrain.quote) >= 9 for quatrain in written)
    told = quatrains.report_quotes(written, 4)
    assert told == (
        'Longest quote: 9 words, "the king of rome he shall see no moon" (II.1). '
        "3 quoted more than 4 words and were drawn again, 3 of them 10 times in vain."
    )


def test_openings_start_every_quatrain(prophet):
    written = prophet.write(20, opening="The King of Rome,", temperature=2.0)
    assert all(q.tokens[:5] == ["the", "king", "of", "rome", ","] for q in written)
    assert all(q.verse.startswith("The") for q in written)
    assert len({q.verse for q in written}) > 1


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"opening": "the kin of xyzzy"},
            r"never uses: kin \(near it: king\); xyzzy \(near it: nothing\)",
        ),
        ({"opening": "the " * 32}, "opening has 32 words: set max_words to more"),
        ({"count": -1}, "generate = -1 will not do"),
        ({"count": "2"}, "generate = '2' will not do"),
        ({"max_quote": -1}, "max_quote = -1 will not do"),
        ({"temperature": 0.0}, "temperature = 0.0 will not do"),
        ({"top_k": -1}, "top_k = -1 will not do"),
        ({"seed": "x"}, "seed = 'x' will not do"),
    ],
    ids=str,
)
def test_bad_parameters_are_explained(prophet, given, message):
    with pytest.raises(quatrains.InputError, match=message):
        prophet.write(**{"count": 2} | given)


def test_the_same_from_a_shell(tmp_path, capsys, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.chdir(tmp_path)
    write_verses(tmp_path / "verses.txt")
    settings = SMALL | {"corpus": "verses.txt", "max_quote": 2, "opening": "King"}
    assert quatrains.main(arguments(**settings)) == 0
    out = capsys.readouterr().out
    assert out.count("Longest quote: ") == 2
    (folder,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(folder)).Reload().Tensors("quote")
    assert [event.step for event in events] == [1, 3]

    shell = {"generate": 20, "temperature": 0.8, "opening": "the sea", "max_quote": 0}
    assert quatrains.main(arguments(**shell)) == 2
    assert "never uses: the (near it: " in capsys.readouterr().err
    assert quatrains.main(arguments(**shell | {"opening": "Sea moon"})) == 0
    printed = capsys.readouterr()
    assert printed.out.replace("\n", " ").lower().count("sea moon") >= 20
    path = Path("logs", folder.name, "checkpoint.keras")
    assert printed.err.startswith(f"\nFrom {path}. Longest quote: ")
