"""Generation: sampled words, candidates and how they are ranked, quotes, SLOR, and prompts."""

import numpy as np
import pytest

import quatrains
from conftest import write_verses
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


@pytest.fixture(scope="module")
def lm():
    return make_lm()


def make_draft(lm, text, log_ratios=(1, 0), over=True):
    token_ids = [*map(lm.corpus.vocabulary.index, text.split()), *[0] * over]
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
    assert lm.make_quatrain(draft, raw=True) == expected
    verse = quatrains.format_verse(tokens, lm.casing, lm.line_count)
    assert str(lm.make_quatrain(draft, raw=False)) == verse


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


def test_candidates_are_ranked_by_quote_then_form_then_slor():
    lm = make_lm(line_ends=True)
    assert lm.usual_form == (2, True)

    def choose(*drafts, limit=4):
        return drafts.index(lm.choose_line([*drafts], limit))

    # Whole quatrains: two lines and the end of a sentence are the usual form.
    whole = make_draft(lm, "the moon <LINE1> is gone .")
    better = make_draft(lm, "sun is king <LINE1> is rome .", [3, 1])
    no_sentence = make_draft(lm, "moon of moon <LINE1> is sun", [9])
    one_line = make_draft(lm, "moon is sun .", [9])
    quote = make_draft(lm, "the king of rome he <LINE1> is gone .", [99])
    assert choose(whole, better, no_sentence, one_line, quote) == 1
    assert choose(whole, no_sentence, one_line, quote) == 0
    assert choose(no_sentence, quote) == 0
    assert choose(no_sentence, quote, limit=5) == 1
    assert choose(quote, make_draft(lm, "the queen of rome shall see . .", [100])) == 0

    # The first line of two must end with the first line end, in time.
    first = make_draft(lm, "moon sun <LINE1>", [1], over=False)
    cut = make_draft(lm, "moon sun", [9], over=False)
    assert choose(cut, first, one_line) == 1
    third = make_draft(lm, "moon <LINE1> sun <LINE1>", [9], over=False)
    assert choose(third, first) == 1


def test_every_line_continues_the_best_one_before_it(tmp_path, monkeypatch):
    read = quatrains.read_corpus(write_verses(tmp_path / "verses.txt"))
    lm = make_lm(read, line_ends=True, **dict.fromkeys(("<LINE1>", "<LINE2>", "<LINE3>"), 3))
    kept, started = [], []
    sample_lines, choose_line = lm.sample_lines, lm.choose_line

    def note_starts(drafts, settings, rng):
        started.extend(draft.token_ids for draft in drafts)
        groups = sample_lines(drafts, settings, rng)
        for draft, group in zip(drafts, groups, strict=True):
            assert len(group) == settings.best_of == 5
            for candidate in group:
                assert candidate.token_ids[: len(draft.token_ids)] == draft.token_ids
                added = candidate.token_ids[len(draft.token_ids) :]
                ends = [lm.corpus.vocabulary[token_id].startswith("<") for token_id in added]
                assert not any(ends[:-1])
                assert ends[-1] or len(candidate.token_ids) == settings.max_length
        return groups

    def note_best(candidates, limit):
        kept.append(choose_line(candidates, limit))
        return kept[-1]

    monkeypatch.setattr(lm, "sample_lines", note_starts)
    monkeypatch.setattr(lm, "choose_line", note_best)
    generated = lm.generate(6, seed=1, best_of=5, max_length=20)
    assert len(generated) == 6 < len(kept)
    finished = [draft for draft in kept if not draft.token_ids[-1] or len(draft.token_ids) == 20]
    assert [lm.decode(draft) for draft in finished] == [each.tokens for each in generated]
    assert started == [[]] * 6 + [draft.token_ids for draft in kept if draft not in finished]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("token", [quatrains.BREAK, ",", "<LINE1>"])
def test_every_quatrain_has_a_word(token, temperature):
    lm = make_lm(line_ends=True, **{token: 50})
    generated = lm.generate(20, seed=1, temperature=temperature)
    assert {len(quatrain.tokens) for quatrain in generated} == {1 if token == "<BREAK>" else 32}
    words = {quatrain.text.rstrip(",") for quatrain in generated}
    assert all(word.isalpha() for word in words)
    assert len(words) > 3 or not temperature


def test_without_line_ends_there_are_as_many_lines_as_mostly_in_the_corpus():
    def count_lines(*texts, **kwargs):
        lm = make_lm([("1", text) for text in texts], **kwargs, **{quatrains.BREAK: -50})
        return {len(quatrain.text.split("\n")) for quatrain in lm.generate(9, seed=1)}

    assert count_lines("one two\nthree", "four\nfive six", "a\nb\nc") == {2}
    assert count_lines("one two three four", "five six seven", "a\nb\nc") == {1}
    # Verse with line ends is never split further.
    assert count_lines("one two\nthree", "a\nb", line_ends=True, **{"<LINE1>": -50}) == {1}


def test_the_prompt_starts_every_quatrain_and_a_seed_repeats_them(lm):
    one, same, other = (
        lm.generate(20, seed, prompt="The King of\u200bRome,") for seed in (1, 1, 2)
    )
    assert one == same != other
    starts = {tuple(quatrain.tokens[:5]) for quatrain in one + other}
    assert starts == {("the", "king", "of", "rome", ",")}
    assert all(str(quatrain).startswith("The") for quatrain in one)


BAD = [
    ({"prompt": "the kin"}, r"prompt has 'kin', which is not in the corpus \(similar: king"),
    ({"prompt": "the " * 32}, "prompt has 32 tokens: shorten it, or increase max_length"),
    ({"temperature": -1}, "temperature = -1 is invalid: expected a number from 0 up"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD)
def test_bad_overrides_are_explained(lm, overrides, message):
    with pytest.raises(quatrains.UsageError, match=message):
        lm.generate(2, **overrides)


@pytest.mark.filterwarnings("error")
def test_a_diverged_model_that_predicts_only_breaks_is_refused_in_one_line():
    message = r"^the model predicts no words: lower learning_rate and train again$"
    with pytest.raises(quatrains.UsageError, match=message):
        make_lm(**{quatrains.BREAK: 1000}).generate(2)
