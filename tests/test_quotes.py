"""What a model writes: words drawn, drafts and their score, quotes found and avoided, openings."""

from dataclasses import asdict

import numpy as np
import pytest

import quatrains
from quatrains import Settings, keras

VERSES = [
    ("I.1", "The king of Rome, he shall see\nThe moon over the sea."),
    ("I.2", "The queen of Rome shall see the sun\nWhen the moon is gone."),
    ("II.1", "The king of Rome; he shall see no moon."),
]


def draw(count, probabilities, temperature=1.0, top_p=1.0):
    chances = np.tile(np.float32(probabilities), (count, 1))
    return quatrains.draw_words(chances, temperature, top_p, np.random.default_rng(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_words_are_drawn_at_a_temperature_from_the_nucleus_of_their_row(temperature, top_p):
    rows = np.random.default_rng(2).dirichlet(np.ones(12), 2)
    drawn = draw(30_000, rows, temperature, top_p)
    for number, expected in enumerate(rows ** (1 / temperature)):
        kept = []
        for word in np.argsort(-expected):
            if expected[kept].sum() < top_p * expected.sum():
                kept.append(word)
        assert len(kept) == 12 or top_p < 1
        counts = np.bincount(drawn[number::2], minlength=12)[kept]
        assert counts.sum() == 30_000
        wanted = 30_000 * expected[kept] / expected[kept].sum()
        # At most 11 degrees of freedom: above 40 once in 30,000 seeds.
        assert ((counts - wanted) ** 2 / wanted).sum() < 40


def test_the_least_and_the_most_that_settings_allow_are_the_likeliest_word_and_any():
    probabilities, least = [0.2, 0.5, 0.3, 0], quatrains.LEAST
    assert {*draw(1000, probabilities, temperature=least["temperature"])} == {1}
    assert {*draw(1000, probabilities, top_p=least["top_p"])} == {1}
    counts = np.bincount(draw(30_000, probabilities, temperature=2.0**32))
    assert counts == pytest.approx([10_000] * 3, abs=400)


def test_quotes_are_those_a_plain_search_finds():
    rng = np.random.default_rng(1)
    # Words that are parts of one another: only whole ones are a quote.
    names = ["a", "an", "ana", "na", "b", "ban", "bana", "banana"]
    source = "\n".join(f" {' '.join(rng.choice(names, 30))} " for _ in range(20))
    for _ in range(200):
        words = rng.choice([*names, "nab"], rng.integers(0, 33)).tolist()
        runs = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        found = [run for run in runs if f" {' '.join(run)} " in source]
        quote = quatrains.longest_quote(words, source)
        assert len(quote) == max(map(len, found), default=0)
        assert quote in found or not quote
    assert quatrains.longest_quote(list("abcd"), " a b \n c d ") == ["a", "b"]


def make_prophet(**bias):
    corpus = quatrains.index_corpus(VERSES)
    keras.utils.set_random_seed(1)
    settings = Settings(gru_dim=8, embedding_dim=8, max_quote=99)
    embeddings = np.random.default_rng(1).normal(0, 1, (len(corpus.words), 8))
    model = quatrains.build_model(embeddings, settings)
    model.layers[-1].bias.assign([bias.get(word, 0) for word in corpus.words])
    return quatrains.Prophet(settings, corpus, model, 1)


@pytest.fixture(scope="module")
def prophet():
    return make_prophet()


@pytest.mark.parametrize(
    ("text", "quote", "source"),
    [
        ("the king of rome he shall see no", "the king of rome he shall see no", "II.1"),
        ("sun the king of rome , he <LINE1> shall see", "the king of rome he shall see", "I.1"),
        ("moon is gone the king", "moon is gone", "I.2"),
        ("sun sun", "sun", "I.2"),
    ],
)
def test_punctuation_and_ends_of_lines_do_not_hide_a_quote(prophet, text, quote, source):
    tokens = text.split()
    found = prophet.describe(tokens, 0.5, raw=True)
    assert found == (tokens, text, quote.split(), source, 0.5)
    verse = quatrains.format_verse(tokens, {"rome": "Rome"})
    assert str(prophet.describe(tokens, 0.5, raw=False)) == verse


@pytest.mark.parametrize("start", [[], [1, 2]], ids=str)
def test_slor_is_the_mean_gain_of_a_token_over_its_frequency(prophet, start):
    words, counts = prophet.corpus.words, prophet.corpus.counts
    settings = Settings(**asdict(prophet.settings) | {"temperature": 2})
    for draft in prophet.draw(50, start, settings, np.random.default_rng(1)):
        row = np.array([0] * 4 + [words.index(token) for token in draft.tokens])
        places = range(4 + len(start), len(row))
        phrases = np.array([row[place - 4 : place] for place in places]).reshape(-1, 4)
        chances = prophet.model(phrases).numpy()[range(len(places)), row[places]]
        gains = np.log(chances) - np.log(counts[row[places]] / counts.sum())
        assert draft.slor == pytest.approx(gains.mean() if len(gains) else 0, abs=1e-5)


@pytest.mark.parametrize(("count", "limit"), [(300, 99), (30, 99), (30, 2), (30, 1)])
def test_each_is_the_best_of_its_drafts_by_quote_then_form_then_score(prophet, count, limit):
    def rate(draft):
        words, ends = len(draft.quote), draft.tokens[-1:] == ["."]
        return words <= limit, words > 0 and ends, draft.slor

    drafts = prophet.draw(300, [], prophet.settings, np.random.default_rng(3))
    best = [max(drafts[number::count], key=rate) for number in range(count)]
    best = [draft for draft in best if 0 < len(draft.quote) <= limit]
    assert len(best) > 0.6 * count
    written = prophet.write(count, 3, drafts=300 // count, max_quote=limit)
    assert written[: len(best)] == best
    assert len(written) == count
    assert max(len(quatrain.quote) for quatrain in written) <= limit
    assert prophet.quoted >= max(len(draft.quote) for draft in drafts) > 2


def test_drawing_again_has_an_end(prophet):
    opening = "the king of rome he shall see no moon"
    written = prophet.write(3, opening=opening, max_quote=4, seed=1)
    assert [len(quatrain.quote) for quatrain in written] == [9] * 3
    assert quatrains.report_quotes(written) == f'Longest quote: 9 words, "{opening}" (II.1).'


def test_empty_quatrains_are_not_written():
    # Most are at once over, some have a mark and no word.
    often = make_prophet(**{quatrains.BREAK: 3, ".": 3})
    drawn = often.draw(100, [], often.settings, np.random.default_rng(1))
    assert {(), (".",)} <= {tuple(draft.tokens) for draft in drawn}
    assert [bool(quatrain.verse) for quatrain in often.write(20, seed=1)] == [True] * 20
    always = make_prophet(**{quatrains.BREAK: 50})
    assert always.write(20, seed=1) == []
    assert quatrains.report_quotes([]) == "All that was drawn is empty."


def test_openings_start_every_quatrain(prophet):
    written = prophet.write(20, opening="The King of\u200bRome,", temperature=2.0)
    assert {tuple(q.tokens[:5]) for q in written} == {("the", "king", "of", "rome", ",")}
    assert all(q.verse.startswith("The") for q in written)
    assert len({q.verse for q in written}) > 1


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"opening": "the kin"}, r"opening has 'kin', which the corpus lacks \(near it: king"),
        ({"opening": "xyzzy"}, r"'xyzzy', which the corpus lacks \(near it: nothing\)"),
        ({"opening": "the " * 32}, "opening has 32 words: set max_words to more"),
        ({"top_k": 5}, "top_k is no setting"),
    ],
)
def test_bad_changes_are_explained(prophet, changes, told):
    with pytest.raises(quatrains.InputError, match=told):
        prophet.write(2, **changes)
