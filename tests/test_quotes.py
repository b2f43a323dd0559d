"""What a model writes: words drawn, drafts and their score, quotes found and avoided, openings."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import quatrains
from quatrains import Settings, keras

VERSES = (
    "# Century I\n\nThe king of Rome, he shall see\nThe moon over the sea.\n\n"
    "The queen of Rome shall see the sun\nWhen the moon is gone.\n\n"
    "# Century II\n\nThe king of Rome; he shall see no moon.\n"
)


def draw(count, probabilities, temperature=1.0, top_p=1.0):
    chances = np.tile(np.float32(probabilities), (count, 1))
    return quatrains.draw_words(chances, temperature, top_p, np.random.default_rng(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_words_are_drawn_at_a_temperature_from_the_nucleus_of_their_row(temperature, top_p):
    rows = np.random.default_rng(2).dirichlet(np.ones(12), 2)
    drawn = draw(30_000, rows, temperature, top_p)
    for number, probabilities in enumerate(rows ** (1 / temperature)):
        expected = probabilities / probabilities.sum()
        kept = []
        for word in np.argsort(-expected):
            if sum(expected[kept]) < top_p:
                kept.append(word)
        assert len(kept) == 12 or top_p < 1
        counts = np.bincount(drawn[number::2], minlength=12)
        assert counts[kept].sum() == 30_000
        wanted = 30_000 * expected[kept] / expected[kept].sum()
        # At most 11 degrees of freedom: above 40 once in 30,000 seeds.
        assert ((counts[kept] - wanted) ** 2 / wanted).sum() < 40


def test_the_least_and_the_most_that_settings_allow_are_the_likeliest_word_and_any():
    probabilities = [0.2, 0.5, 0.3, 0]
    assert {*draw(1000, probabilities, temperature=1e-9)} == {1}
    assert {*draw(1000, probabilities, top_p=1e-9)} == {1}
    counts = np.bincount(draw(30_000, probabilities, temperature=1e9))
    assert counts == pytest.approx([10_000] * 3, abs=400)


def longest(text, corpus):
    """Quote search by trying every run of words in every quatrain."""
    words = text.split()
    runs = (words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1))
    found = (run for run in runs if any(f" {' '.join(run)} " in f" {other} " for other in corpus))
    return max(map(len, found), default=0)


def test_quotes_are_those_a_plain_search_finds():
    rng = np.random.default_rng(1)
    # Words that are parts of one another: only whole ones are a quote.
    names = ["a", "an", "ana", "na", "b", "ban", "bana", "banana"]
    corpus = [" ".join(rng.choice(names, 30)) for _ in range(20)]
    source = "\n".join(f" {text} " for text in corpus)
    for _ in range(200):
        words = rng.choice([*names, "nab"], rng.integers(0, 33)).tolist()
        quote = quatrains.longest_quote(words, source)
        assert len(quote) == longest(" ".join(words), corpus)
        assert not quote or f" {' '.join(quote)} " in source
        assert not quote or f" {' '.join(quote)} " in f" {' '.join(words)} "
    assert quatrains.longest_quote(list("abcd"), " a b \n c d ") == ["a", "b"]


def make_prophet(path, **bias):
    """An untrained model of VERSES; some words may have a bias."""
    path.write_text(VERSES, encoding="utf-8")
    corpus = quatrains.index_corpus(quatrains.read_corpus(path))
    keras.utils.set_random_seed(1)
    settings = Settings(gru_dim=8, embedding_dim=8)
    embeddings = np.random.default_rng(1).normal(0, 1, (len(corpus.words), 8)).astype(np.float32)
    model = quatrains.build_model(embeddings, 4, settings)
    kernel, biases = model.layers[-1].get_weights()
    for word, value in bias.items():
        biases[corpus.words.index(word)] = value
    model.layers[-1].set_weights([kernel, biases])
    return quatrains.Prophet(settings, corpus, model, Path("none"), 1)


@pytest.fixture(scope="module")
def prophet(tmp_path_factory):
    return make_prophet(tmp_path_factory.mktemp("quotes") / "verses.txt")


QUOTES = [
    ("the king of rome he shall see no", "the king of rome he shall see no", "II.1"),
    ("sun the king of rome , he shall <LINE1> see the", "the king of rome he shall see the", "I.1"),
    ("moon is gone the king", "moon is gone", "I.2"),
    ("sun sun", "sun", "I.2"),
]


@pytest.mark.parametrize(("text", "quote", "source"), QUOTES)
def test_punctuation_and_ends_of_lines_do_not_hide_a_quote(prophet, text, quote, source):
    found = prophet.describe(text.split(), 0.5)
    assert (" ".join(found.quote), found.source, found.slor) == (quote, source, 0.5)
    assert (found.tokens, str(found)) == (text.split(), found.verse)


@pytest.mark.parametrize("start", [[], [1, 2]], ids=str)
def test_slor_is_the_mean_gain_of_a_token_over_its_frequency(prophet, start):
    index, settings = prophet.corpus.words.index, prophet.settings.changed(temperature=2.0)
    counts = Counter(quatrains.tokenize(" ".join(prophet.corpus.texts))) | {quatrains.BREAK: 1}
    drafts = prophet.draw(50, start, settings, np.random.default_rng(1))
    rows = [[0] * 4 + [*map(index, tokens), 0] for tokens, _ in drafts]
    phrases = [row[place : place + 4] for row in rows for place in range(len(row) - 4)]
    chances = iter(prophet.model.predict(np.array(phrases), verbose=0))
    for tokens, slor in drafts:
        gains = [
            np.log(next(chances)[index(token)]) - np.log(counts[token] / sum(counts.values()))
            for token in [*tokens, quatrains.BREAK]
        ]
        assert slor == pytest.approx(np.mean(gains[len(start) : -1] or [0]), abs=1e-5)


def test_the_best_draft_is_kept_its_form_before_its_score(prophet):
    drafts = [
        ("sun of king .".split(), 1.0),
        ("the moon over the sea .".split(), 3.0),
        ("moon sun .".split(), 2.0),
        ("sun sun sun".split(), 9.0),
    ]
    for limit, best in ((9, 1), (4, 2), (2, 2)):
        prophet.quoted = 0
        assert prophet.choose(drafts, limit).tokens == drafts[best][0]
        assert prophet.quoted == 5
    # Where all quote too much it is the best that may be let pass.
    assert prophet.choose(drafts, 0).tokens == drafts[1][0]


def test_each_quatrain_is_the_best_of_its_drafts(prophet):
    drafts = prophet.draw(300, [], prophet.settings, np.random.default_rng(3))
    ranked = sorted(drafts, key=lambda draft: (draft[0][-1:] == ["."], draft[1]))
    written = [(each.tokens, each.slor) for each in prophet.write(30, 3, drafts=10, max_quote=0)]
    assert len(written) == 30
    assert ranked[-1] in written
    assert all(draft in drafts for draft in written)
    assert not any(draft in ranked[:20] for draft in written)
    plain = prophet.write(300, 3, max_quote=0)
    with_words = [draft for draft in drafts if set(draft[0]) - {",", ".", ";"}]
    assert [(each.tokens, each.slor) for each in plain][: len(with_words)] == with_words


def test_what_quotes_too_much_is_passed_over_and_told(prophet):
    freely = prophet.write(100, seed=3, max_quote=0)
    most = max(len(quatrain.quote) for quatrain in freely)
    assert prophet.quoted == most > 2
    assert "passed over" not in quatrains.report_quotes(freely, most)
    strictly = prophet.write(100, seed=3, max_quote=2)
    assert max(len(quatrain.quote) for quatrain in strictly) == 2
    assert prophet.quoted >= most
    told = quatrains.report_quotes(strictly, prophet.quoted)
    assert told.startswith("Longest quote: 2 words, ")
    assert told.endswith(f" A draft that quoted {prophet.quoted} was passed over.")


def test_drawing_again_has_an_end(prophet):
    written = prophet.write(3, opening="the king of rome he shall see no moon", max_quote=4, seed=1)
    assert [len(quatrain.quote) for quatrain in written] == [9] * 3
    told = quatrains.report_quotes(written, prophet.quoted)
    assert told == 'Longest quote: 9 words, "the king of rome he shall see no moon" (II.1).'


def test_empty_quatrains_are_not_written(tmp_path):
    # Most are at once over, some have a mark and no word.
    often = make_prophet(tmp_path / "verses.txt", **{quatrains.BREAK: 3, ".": 3})
    drawn = often.draw(100, [], often.settings, np.random.default_rng(1))
    assert {(), (".",)} <= {tuple(tokens) for tokens, _ in drawn}
    written = often.write(20, seed=1)
    assert len(written) == 20
    assert all(quatrain.verse for quatrain in written)
    always = make_prophet(tmp_path / "verses.txt", **{quatrains.BREAK: 50})
    assert always.write(20, seed=1) == []
    assert quatrains.report_quotes([], always.quoted) == "All that was drawn is empty."


def test_openings_start_every_quatrain(prophet):
    written = prophet.write(20, opening="The King of\u200bRome,", temperature=2.0)
    assert all(q.tokens[:5] == ["the", "king", "of", "rome", ","] for q in written)
    assert all(q.verse.startswith("The") for q in written)
    assert len({q.verse for q in written}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"opening": "the kin"}, r"opening has 'kin', which the corpus lacks \(near it: king"),
        ({"opening": "xyzzy"}, r"'xyzzy', which the corpus lacks \(near it: nothing\)"),
        ({"opening": "the " * 32}, "opening has 32 words: set max_words to more"),
        ({"max_quote": -1}, "max_quote = -1 will not do"),
        ({"top_k": 5}, "top_k is no setting"),
    ],
    ids=str,
)
def test_bad_changes_are_explained(prophet, changes, message):
    with pytest.raises(quatrains.InputError, match=message):
        prophet.write(2, **changes)
