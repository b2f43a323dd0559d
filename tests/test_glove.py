"""GloVe vectors: files with other lines, unusable files, and random vectors."""

from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import QUICK

DIM = 50
CORPUS = quatrains.index_corpus([("1", "The king, naïve zyzzyva king's sea-king")])
VECTORS = {
    word: np.random.default_rng(len(word)).normal(0, 1, DIM).astype("f4")
    for word in ("the", "king", "naïve", ",", "unused")
}
DEFAULT = Path(f"data/glove.6B.{DIM}d.txt")


def glove_text(vectors=VECTORS):
    lines = (f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())
    return "".join(lines).encode()


@pytest.fixture(autouse=True)
def in_a_folder_with_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()


def embed(glove, dim=DIM, corpus=CORPUS):
    settings = quatrains.Settings(glove=str(glove), embedding_dim=dim, seed=3)
    return quatrains.make_embeddings(corpus, settings)


def check(embeddings, vectors):
    """Check that the words have their vectors, and all others their random ones."""
    expected = embed("none")
    for token_id, token in enumerate(CORPUS.vocabulary):
        expected[token_id] = vectors.get(token, expected[token_id])
    assert embeddings.dtype == np.float32
    assert np.array_equal(embeddings, expected)


GOOD = glove_text()
CONTENTS = [GOOD, b"\xef\xbb\xbf" + GOOD, GOOD.replace(b"\n", b" \r\n"), GOOD.rstrip()]


@pytest.mark.parametrize("content", CONTENTS, ids=["text", "BOM", "CRLF", "no line end"])
@pytest.mark.parametrize("glove", ["auto", "mine.txt"])
def test_words_get_the_vectors_of_the_file_and_a_line_says_so(glove, content, capsys):
    for path in (DEFAULT, Path("mine.txt")):
        path.write_bytes(glove_text({"the": VECTORS["king"]}))
    path = DEFAULT if glove == "auto" else Path(glove)
    path.write_bytes(content)
    check(embed(glove), VECTORS)
    found = len(VECTORS.keys() & {*CORPUS.vocabulary})
    line = f"GloVe: {path} has {found} of {len(CORPUS.vocabulary)} tokens.\n"
    assert capsys.readouterr().out == line


ONES = b" 1" * (DIM - 1)
SKIPPED = {
    "header": b"5 50",
    "no numbers": b"\nking\n",
    "one number less": b"king" + ONES,
    "one number more": b"king 1 1" + ONES,
    "no number": b"king x" + ONES,
    "not a number": b"king nan" + ONES,
    "infinite": b"king -inf" + ONES,
    "two words": b"king s 1" + ONES,
    "tabs": (b"king 1" + ONES).replace(b" ", b"\t"),
    "not UTF-8": b"caf\xe9 1" + ONES + b"\nking 1\xff" + ONES,
    "binary": bytes(range(256)) + b"\nking " + bytes(200),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "no word of the corpus": b"unused 1" + ONES,
}


@pytest.mark.parametrize("line", SKIPPED.values(), ids=SKIPPED)
def test_lines_that_are_not_a_word_and_its_numbers_are_skipped(line):
    DEFAULT.write_bytes(line + b"\n" + GOOD + line + b"\n")
    check(embed("auto"), VECTORS)
    # Without others, the file is unusable.
    DEFAULT.write_bytes(line)
    reason = f"has no line with a word of the corpus and {DIM} numbers: set embedding_dim to "
    with pytest.raises(quatrains.UsageError, match=f'^GloVe file {DEFAULT} {reason}.* "none"$'):
        embed("auto")


def test_without_a_file_vectors_are_random_and_only_auto_says_so(capsys):
    corpus = quatrains.index_corpus([("1", " ".join(map(str, range(1000))))])
    for dim in (DIM, 77):
        assert np.array_equal(embed("auto", dim, corpus), embed("none", dim, corpus))
        (line,) = capsys.readouterr().out.splitlines()
        assert line.startswith(f"GloVe: data/glove.6B.{dim}d.txt is missing, so word vectors are ")
    embeddings = embed("none", 77, corpus)
    assert capsys.readouterr().out == ""
    assert embeddings.shape == (len(corpus.vocabulary), 77)
    assert (embeddings.mean(), embeddings.std()) == pytest.approx((0, 0.4), abs=0.01)


def test_training_starts_from_the_vectors_of_the_file(verses):
    DEFAULT.write_bytes(GOOD)
    settings = quatrains.make_settings(**QUICK | {"glove": "auto", "embedding_dim": DIM})
    lm = quatrains.start_experiment(settings)
    (weights,) = lm.model.layers[0].get_weights()
    assert np.array_equal(weights, quatrains.make_embeddings(lm.corpus, settings))
