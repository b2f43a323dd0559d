"""Train a recipe on a corpus and print how well it predicts, and how its verse is built.

    python tests/verse_quality.py                          recipe verse on data/quatrains.txt
    python tests/verse_quality.py --seeds 1 2 3            three trainings
    python tests/verse_quality.py CORPUS --recipe 2017     another corpus, the other recipe

Beside it stand what an interpolated Kneser-Ney model of five-grams makes of the same samples, and
the corpus's own verse. Exit status 1 where recipe verse does not beat Kneser-Ney by MARGIN, or what
it writes as it comes falls short of LEAST. It takes minutes: run by hand.
"""

import argparse
import contextlib
import itertools
import sys
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
import quatrains  # noqa: E402

EPOCHS = (6, 12, 18)
VERSES = 300
# How quatrains are written, beside as the recipe comes.
OTHERWISE = {"temperature 1, 1 draft": {"temperature": 1.0, "top_p": 1.0, "drafts": 1}}
# Nats that recipe verse is to be better by: more where there are ends of lines, for a Kneser-Ney
# model of five-grams cannot tell how long a line is by then, or which of them it is in.
MARGIN, MARGIN_WITHOUT_LINES = 0.4, 0.2
# Shares of what is written as it comes, as parts of the corpus's own.
LEAST = {"as many lines": 0.98, "end a sentence": 0.98, "distinct pairs": 2 / 3}


def kneser_ney(train, check, words, order=5):
    """Predict every word after the phrases of `check`: interpolated Kneser-Ney, one discount an
    order (Chen and Goodman 1999), on the n-grams that end in a training sample's target."""
    phrases, targets, _ = train
    grams = np.column_stack([phrases, targets])[:, -order:].tolist()
    levels = [Counter(map(tuple, grams))]
    while len(levels) < min(order, len(grams[0])):
        levels.append(Counter(gram[1:] for gram in levels[-1]))  # After how many different words.
    predicted = np.full((len(check[1]), words), 1 / words)
    for length, counts in enumerate(reversed(levels)):
        once, twice = (sum(count == n for count in counts.values()) for n in (1, 2))
        discount = once / (once + 2 * twice)
        after = defaultdict(dict)
        for gram, count in counts.items():
            after[gram[:-1]][gram[-1]] = count
        for row, phrase in zip(predicted, check[0].tolist(), strict=True):
            if seen := after.get(tuple(phrase[len(phrase) - length :])):
                row *= discount * len(seen) / sum(seen.values())
                row[[*seen]] += (np.array([*seen.values()]) - discount) / sum(seen.values())
    return predicted


def measure_neighbour(corpus, train, check):
    """Return cross-entropy and accuracy of Kneser-Ney on the samples that a training validates
    with, with the ends of lines as they are and with all of them the same token."""
    ends = [number for number, word in enumerate(corpus.words) if word.startswith("<LINE")]
    one = np.arange(len(corpus.words), dtype=np.int32)
    one[ends] = min(ends, default=0)
    figures = []
    for names in (np.arange(len(one)), one)[: 1 + (len(ends) > 1)]:
        known, asked = (
            (names[phrases], names[targets[:, 0]], 0) for phrases, targets, _ in (train, check)
        )
        predicted = kneser_ney(known, asked, len(one))
        right = predicted[np.arange(len(asked[1])), asked[1]]
        figures.append((-np.log(right).mean(), (predicted.argmax(1) == asked[1]).mean()))
    return figures


def describe(verses, corpus, usual):
    """Return shares and means of verses, given as texts; of their lines only where `usual`, the
    number of lines that most verses of the corpus have, is more than one."""
    tokens = [quatrains.tokenize(verse) for verse in verses]
    words = [[*filter(quatrains.WORD.match, row)] for row in tokens]
    pairs = [pair for row in words for pair in itertools.pairwise(row)]
    counts = Counter(word for row in corpus for word in row)
    known = {pair for row in corpus for pair in itertools.pairwise(row)}
    every = [word for row in words for word in row]
    shares = {
        'begin with "the"': np.mean([row[:1] == ["the"] for row in tokens]),
        "rare words": np.mean([counts[word] <= 2 for word in every]),
        "neighbours known": np.mean([pair in known for pair in pairs]),
        "distinct pairs": len({*pairs}) / len(pairs),
        "openings": len({*(tuple(row[:2]) for row in words)}),
        '"the great one" a quatrain': np.mean(
            [" ".join(row).count("the great one") for row in words]
        ),
        "tokens": np.mean([*map(len, tokens)]),
        "end a sentence": np.mean([row[-1:] in (["."], ["!"], ["?"]) for row in tokens]),
    }
    if usual > 1:
        lines = [line for verse in verses for line in verse.splitlines()]
        lengths = [len([*filter(quatrains.WORD.match, quatrains.tokenize(line))]) for line in lines]
        shares |= {
            "as many lines": np.mean([len(verse.splitlines()) == usual for verse in verses]),
            "words a line": np.mean(lengths),
            "their spread": np.std(lengths),
        }
    return shares


def measure(settings, seed):
    """Train; return (cross-entropy, accuracy) after each of EPOCHS, and by how they were written
    quatrains, with the SLOR of the samples kept back."""
    with tempfile.TemporaryDirectory() as logs:
        of_run = {"logs": logs, "runs": 3, "epochs_per_run": EPOCHS[0], "seed": seed}
        given = settings.given | of_run
        with contextlib.redirect_stdout(sys.stderr):
            prophet = quatrains.train(quatrains.Settings(**given))
        figures = prophet.history.history
        penalty = float(sum(prophet.model.losses))
        after = [(figures["val_loss"][n - 1] - penalty, figures["val_acc"][n - 1]) for n in EPOCHS]
        _, (phrases, targets, _) = quatrains.make_samples(prophet.corpus, settings)
        kept = targets[:, 0] > 0
        chances = prophet.model.predict(phrases[kept], 512, verbose=0)
        targets = targets[kept, 0]
        gains = np.log(chances[np.arange(len(targets)), targets]) - prophet.log_frequencies[targets]
        written = {"as it comes": prophet.write(VERSES, seed=seed)}
        for name, changes in OTHERWISE.items():
            written[name] = prophet.write(VERSES, seed=seed, max_quote=1000, **changes)
    return after, gains.mean(), written


def find_faults(neighbours, figures, own, verse):
    """Say where recipe verse falls short."""
    margin = MARGIN if "as many lines" in own else MARGIN_WITHOUT_LINES
    if not figures[-1][0] <= neighbours[0][0] - margin:
        yield f"cross-entropy {figures[-1][0]:.3f} is not {margin} better"
    for name, part in LEAST.items():
        if name in own and verse[name] < part * own[name]:
            yield f"{name}: {verse[name]:.3f} is below {part:.2f} of the corpus's {own[name]:.3f}"


def show(neighbours, figures, columns):
    """Print both tables."""
    print(f"| | Kneser-Ney | {' | '.join(f'{n} epochs' for n in EPOCHS)} |")
    print("|---" * (2 + len(EPOCHS)) + "|")
    for i, name in enumerate(("cross-entropy", "accuracy")):
        first, *others = (f"{each[i]:.3f}" for each in neighbours)
        row = [first + "".join(f" ({other})" for other in others)]
        print(f"| {name} | {' | '.join(row + [f'{each[i]:.3f}' for each in figures])} |")
    print(f"\n| of {VERSES} | {' | '.join(columns)} |\n|{'---|' * (1 + len(columns))}")
    for name in columns["corpus"]:
        print(
            f"| {name} | {' | '.join(f'{each[name]:.3f}' for each in columns.values())} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("corpus", nargs="?", default=str(ROOT / "data" / "quatrains.txt"))
    parser.add_argument("--recipe", default="verse")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    given = parser.parse_args()
    settings = quatrains.Settings(corpus=given.corpus, recipe=given.recipe, glove="none")
    pairs = quatrains.read_corpus(Path(given.corpus))
    texts = [text for _, text in pairs]
    plain = quatrains.index_corpus(pairs).tokens
    words = [[*filter(quatrains.WORD.match, row)] for row in plain]
    usual = Counter(len(text.splitlines()) for text in texts).most_common(1)[0][0]
    some = np.random.default_rng(1).permutation(len(texts))[:VERSES]
    own = describe([texts[i] for i in some], words, usual)
    corpus = quatrains.index_corpus(pairs, settings.whole_quatrains)
    neighbours = measure_neighbour(corpus, *quatrains.make_samples(corpus, settings))
    faults = []
    for seed in given.seeds:
        print(f"\n{given.corpus}, recipe {given.recipe}, seed {seed}", flush=True)
        figures, slor, written = measure(settings, seed)
        columns = {"corpus": own | {"SLOR": slor}}
        for name, verses in written.items():
            columns[name] = describe([verse.verse for verse in verses], words, usual)
            columns[name]["SLOR"] = np.mean([verse.slor for verse in verses])
        show(neighbours, figures, columns)
        if given.recipe == "verse":
            found = find_faults(neighbours, figures, own, columns["as it comes"])
            faults += [f"seed {seed}: {fault}" for fault in found]
    print("", *faults, sep="\n")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
