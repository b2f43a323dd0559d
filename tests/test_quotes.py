"""Generation: sampled words, lines and their candidates, quotes, SLOR, and prompts."""

import re
from dataclasses import replace

import numpy as np
import pytest

import quatrains
from conftest import WORDS
from quatrains import Settings, keras

VERSES = [
    ("I.1", "The king of Rome, he shall see\nThe moon over the sea."),
    ("I.2", "The queen of Rome shall see the sun\nWhen the moon is gone."),
    ("II.1", "The king of Rome; he shall see no moon."),
]


def sample(count, probs, temperature=1.0, top_p=1.0):
    rows = np.tile(np.float32(probs), (count, 1))
    return quatrains.sample_words(rows, temperature, top_p, np.random.default_rng(1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("top_p", [0.3, 0.8, 1.0])
def test_words_are_sampled_at_a_temperature_from_the_nucleus_of_their_row(temperature, top_p):
    rows = np.random.default_rng(2).dirichlet(np.ones(12), 2)
    sampled = sample(30_000, rows, temperature, top_p)
    for number, weights in enumerate(rows ** (1 / temperature)):
        kept = []
        for word in np.argsort(-weights):
            if weights[kept].sum() < top_p * weights.sum():
                kept.append(word)
        assert len(kept) == 12 or top_p < 1
        counts = np.bincount(sampled[number::2], minlength=12)[kept]
        assert counts.sum() == 30_000
        expected = 30_000 * weights[kept] / weights[kept].sum()
        # At most 11 degrees of freedom: above 40 once in 30,000 seeds.
        assert ((counts - expected) ** 2 / expected).sum() < 40


def test_extreme_settings_sample_the_most_likely_word_or_any():
    probs = [0.2, 0.5, 0.3, 0]
    assert {*sample(1000, probs, temperature=0)} == {*sample(1000, probs, top_p=0)} == {1}
    counts = np.bincount(sample(30_000, probs, temperature=2.0**32))
    assert counts == pytest.approx([10_000] * 3, abs=400)


def test_quotes_are_those_that_a_plain_search_finds():
    rng = np.random.default_rng(1)
    # Words that are parts of one another: only whole words count.
    names = ["a", "an", "ana", "na", "b", "ban", "bana", "banana"]
    text = "\n".join(f" {' '.join(rng.choice(names, 30))} " for _ in range(20))
    for _ in range(200):
        words = rng.choice([*names, "nab"], rng.integers(0, 33)).tolist()
        runs = [words[i:j] for i in range(len(words)) for j in range(i + 1, len(words) + 1)]
        found = [run for run in runs if f" {' '.join(run)} " in text]
        quote = quatrains.longest_quote(words, text)
        assert len(quote) == max(map(len, found), default=0)
        assert quote in found or not quote
    assert quatrains.longest_quote(list("abcd"), " a b \n c d ") == ["a", "b"]


def make_lm(quatrains_read=VERSES, line_ends=False, **bias):
    corpus = quatrains.index_corpus(quatrains_read, line_ends)
    keras.utils.set_random_seed(1)
    settings = Settings(gru_dim=8, embedding_dim=8, max_quote_len=99, whole_quatrains=line_ends)
    embeddings = np.random.default_rng(1).normal(0, 1, (len(corpus.vocabulary), 8))
    model = quatrains.build_model(embeddings, settings)
    model.layers[-1].bias.assign([bias.get(word, 0) for word in corpus.vocabulary])
    return quatrains.QuatrainLM(settings, corpus, model, None)


def make_verses(quatrains_read, lines, words):
    """Return so many quatrains of so many lines of so many words."""
    text = "\n".join([" ".join(WORDS[:words])] * lines)
    return [(str(number), text) for number in range(quatrains_read)]


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def make_draft(lm, text, log_ratios=(1, 0)):
    token_ids = [*map(lm.corpus.vocabulary.index, text.split()), 0]
    return quatrains.Draft(token_ids, [*log_ratios])


@pytest.mark.parametrize(
    ("text", "quote", "source"),
    [
        ("the king of rome he shall see no", "the king of rome he shall see no", "II.1"),
        ("sun the king of rome , he <LINE1> shall see", "the king of rome he shall see", "I.1"),
        ("moon is gone the king", "moon is gone", "I.2"),
    ],
)
def test_punctuation_and_line_ends_do_not_hide_a_quote(text, quote, source):
    lm = make_lm(line_ends=True)
    tokens, draft = text.split(), make_draft(lm, text)
    expected = (tokens, text, quote.split(), source, 0.5)
    assert lm.make_quatrain(draft, replace(lm.settings, raw=True)) == expected
    verse = quatrains.format_verse(quatrains.split_lines(tokens), lm.casing)
    assert str(lm.make_quatrain(draft, lm.settings)) == verse


@pytest.mark.parametrize("prompt", ["", "the king"])
def test_slor_is_the_mean_log_ratio_of_a_token_to_its_frequency(lm, prompt):
    words, counts = lm.corpus.vocabulary, lm.corpus.counts
    for quatrain in lm.generate(50, seed=1, prompt=prompt, temperature=2):
        row = np.array([0] * 4 + [words.index(token) for token in quatrain.tokens])
        positions = range(4 + len(prompt.split()), len(row))
        phrases = np.array([row[position - 4 : position] for position in positions]).reshape(-1, 4)
        probs = lm.model(phrases).numpy()[range(len(positions)), row[positions]]
        log_ratios = np.log(probs) - np.log(counts[row[positions]] / counts.sum())
        expected = log_ratios.mean() if len(log_ratios) else 0
        assert quatrain.slor == pytest.approx(expected, abs=1e-5)


def test_the_best_candidate_has_the_highest_slor_of_those_without_a_long_quote(lm):
    def choose(*drafts, limit=4):
        return drafts.index(lm.choose_line([*drafts], limit))

    good = make_draft(lm, "the moon is gone .")
    better = make_draft(lm, "sun is king", [3, 1])
    quote = make_draft(lm, "the king of rome he is gone", [99])
    assert choose(good, better, quote) == 1
    assert choose(better, good) == 0
    assert choose(good, better, quote, limit=5) == 2
    assert choose(quote, make_draft(lm, "the queen of rome shall see", [100])) == 1
    assert choose(quote) == 0


# A model that ends each of four lines, and knows other ends and marks.
LINES = dict.fromkeys(("<LINE1>", "<LINE2>", "<LINE3>", quatrains.BREAK), 3)
FOUR = [*make_verses(9, 4, 6), ("10", "the sun, the.\nsea"), ("11", "moon\n" * 6 + "moon")]
ENDS = ["<LINE1>", "<LINE2>", "<LINE3>"]
FORMS = [{}, {"temperature": 0}, {"temperature": 100}, {"top_p": 0.5}, {"best_of": 3}]
FORMS += [{"prompt": "king, moon"}, {"prompt": ","}]


@pytest.fixture(scope="module")
def four():
    return make_lm(FOUR, line_ends=True, **LINES)


@pytest.mark.parametrize("overrides", FORMS, ids=str)
def test_lines_start_with_a_word_and_end_in_their_own_line_end(four, overrides):
    generated = four.generate(40, seed=1, max_length=1000, **overrides)
    for quatrain in generated:
        text = f"{' '.join(quatrain.tokens)} "
        assert text.startswith(overrides.get("prompt", "").replace(",", " ,").strip())
        assert [token for token in quatrain.tokens if token[0] == "<"] == ENDS
        lines = re.split(r"<LINE.> ", text)
        assert all(line[0].isalpha() for line in lines[overrides == {"prompt": ","} :])
    distinct = len({*map(str, generated)})
    assert distinct == 1 if overrides.get("temperature") == 0 else distinct > 30


def test_quatrains_end_at_a_break_or_at_max_length(lm):
    first, same, other = (lm.generate(2500, seed, max_length=5) for seed in (1, 1, 2))
    assert {len(quatrain.tokens) for quatrain in first} == {1, 2, 3, 4, 5}
    assert not any(quatrains.BREAK in quatrain.tokens for quatrain in first)
    assert first == same != other


def test_the_length_is_limited_across_lines(four):
    lengths = set()
    for quatrain in four.generate(300, seed=1, max_length=12, prompt="king"):
        ends = [token for token in quatrain.tokens if token[0] == "<"]
        assert ends == ENDS[: len(ends)]
        assert len(ends) == 3 or len(quatrain.tokens) == 12
        lengths.add(len(quatrain.tokens))
    assert max(lengths) == 12 > min(lengths)


def test_verse_of_many_lines_has_all_of_them():
    lm = make_lm(make_verses(9, 23, 2), line_ends=True, **{"<LINE20>": 3})
    generated = lm.generate(9, seed=1, max_length=1000)
    assert [quatrain.text.count("\n") for quatrain in generated] == [22] * 9


def test_quatrains_are_in_the_order_of_sampling(four, monkeypatch):
    sample_words, calls = quatrains.sample_words, []

    def note_words(*args):
        calls.append(sample_words(*args))
        return calls[-1]

    monkeypatch.setattr(quatrains, "sample_words", note_words)
    generated = four.generate(50, seed=1)
    firsts = [four.corpus.vocabulary[token_id] for token_id in calls[0]]
    assert [quatrain.tokens[0] for quatrain in generated] == firsts
    assert len({*firsts}) > 3 < len({len(quatrain.tokens) for quatrain in generated})


def test_every_line_continues_the_best_one_before_it(four, monkeypatch):
    sample_lines, choose_line = four.sample_lines, four.choose_line
    kept = [quatrains.Draft([], [])] * 6

    def note_lines(drafts, *args):
        assert drafts == kept
        kept.clear()
        return sample_lines(drafts, *args)

    def note_best(*args):
        kept.append(choose_line(*args))
        return kept[-1]

    monkeypatch.setattr(four, "sample_lines", note_lines)
    monkeypatch.setattr(four, "choose_line", note_best)
    generated = four.generate(6, seed=1, best_of=5, max_length=99)
    assert [*map(four.decode, kept)] == [quatrain.tokens for quatrain in generated]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("line_ends", [False, True])
@pytest.mark.parametrize("token", [quatrains.BREAK, ",", "<LINE1>"])
def test_every_quatrain_has_a_word(token, line_ends, temperature):
    lm = make_lm(line_ends=line_ends, **{token: 15})
    generated = lm.generate(20, seed=1, temperature=temperature)
    words = {quatrain.text.rstrip(",") for quatrain in generated}
    assert all(word[0].isalpha() for word in words)
    assert len(words) > 3 or not temperature


@pytest.mark.parametrize(("max_length", "lines"), [(3, 1), (6, 2), (7, 3), (42, 14), (150, 14)])
def test_without_line_ends_the_number_of_lines_follows_from_the_tokens(max_length, lines):
    lm = make_lm(make_verses(9, 14, 3), **{quatrains.BREAK: -50})
    generated = lm.generate(9, seed=1, max_length=max_length)
    assert {quatrain.text.count("\n") + 1 for quatrain in generated} == {lines}
    assert {len(quatrain.tokens) for quatrain in generated} == {max_length}


def test_without_line_ends_there_are_at_most_as_many_lines_as_mostly_in_the_corpus():
    def count_lines(*texts, **kwargs):
        lm = make_lm([("1", text) for text in texts], **kwargs, **{quatrains.BREAK: -50})
        return {len(quatrain.text.split("\n")) for quatrain in lm.generate(9, seed=1)}

    assert count_lines("one two\nthree", "four\nfive six", "a\nb\nc") == {2}
    # Titles are more than stanzas, but fewer lines.
    assert count_lines("title", "title", "title", "a\nb\nc\nd") == {4}
    # Verse with line ends is never split further.
    assert count_lines("one two\nthree", "a\nb", line_ends=True, **{"<LINE1>": -50}) == {1}


def test_another_model_acts_at_once(lm):
    mine = make_lm()
    before = mine.generate(3, seed=1)
    mine.model = make_lm(moon=50).model
    assert {*mine.generate(3, seed=1)[0].tokens} == {"moon"}
    mine.model = lm.model
    assert mine.generate(3, seed=1) == before


def test_the_prompt_starts_every_quatrain(lm):
    generated = lm.generate(20, seed=1, prompt="The King of\u200bRome,")
    starts = {tuple(quatrain.tokens[:5]) for quatrain in generated}
    assert starts == {("the", "king", "of", "rome", ",")}
    assert all(str(quatrain).startswith("The") for quatrain in generated)


BAD = [
    ({"prompt": "the kin"}, r"prompt has 'kin', which is not in the corpus \(similar: king"),
    ({"prompt": "the " * 32}, "prompt has 32 tokens: shorten it, or increase max_length"),
    ({"temperature": -1}, "temperature = -1.0 is invalid: expected float from 0 to 100"),
    ({"phrase_len": 8}, "phrase_len = 8 contradicts the checkpoint, which was trained with 4"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_overrides_are_explained(lm, overrides, message):
    with pytest.raises(quatrains.UsageError, match=message):
        lm.generate(2, **overrides)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("line_ends", [False, True])
@pytest.mark.parametrize("bias", [1000, np.nan])
def test_a_diverged_model_is_refused_in_one_line(bias, line_ends):
    message = r"^the model has diverged: lower learning_rate and train again$"
    with pytest.raises(quatrains.UsageError, match=message):
        make_lm(line_ends=line_ends, **{quatrains.BREAK: bias}).generate(2)
