"""GloVe vectors: both file formats, damaged files, and random vectors."""

import gzip
import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import QUICK

WORDS = [quatrains.BREAK, "the", "king", "na\u00efve", "zyzzyva", "king's", "sea-king"]
SPREAD = 0.006
NAMES = ["the", "king", "na\u00efve", "s", "unused"]
VECTORS = dict(
    zip(NAMES, np.random.default_rng(1).normal(0, SPREAD, (5, 50)).astype("f4"), strict=True)
)
TEXT, ZIP = Path("data/glove.6B.50d.txt"), Path("data/glove.6B.zip")


def glove_text(vectors=VECTORS):
    lines = (f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())
    return "".join(lines).encode()


def pack(text, member=TEXT.name):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(member, text)
    return packed.getvalue()


@pytest.fixture(autouse=True)
def in_a_folder_with_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()


def read(glove="auto", words=WORDS):
    """Return the embeddings of words, which are random before GloVe replaces them."""
    spread = quatrains.GLOVE_SPREAD
    embeddings = np.random.default_rng(2).normal(0, spread, (len(words), 50)).astype("f4")
    quatrains.read_glove(quatrains.find_glove(glove, 50), words, embeddings)
    return embeddings


# Lines of words that are not in the corpus are not parsed.
CONTENT = glove_text() + b"\n<unk> x\ncaf\xe9 1 2\nother 1 2 3"
CONTENTS = {
    "text": (TEXT, CONTENT),
    "zip": (ZIP, pack(CONTENT)),
    "zip of another GloVe": (ZIP, pack(CONTENT, "vectors.7B.50d.txt")),
    "byte order mark": (TEXT, b"\xef\xbb\xbf" + CONTENT),
    "header": (TEXT, b"4 50\n" + CONTENT),
    "spaces at the end": (TEXT, CONTENT.replace(b"\n", b" \r\n")),
}


@pytest.mark.parametrize(("path", "content"), CONTENTS.values(), ids=CONTENTS)
def test_words_and_words_of_known_parts_get_vectors_from_text_or_zip(path, content, capsys):
    path.write_bytes(content)
    words = [*WORDS, "4"]
    embeddings = dict(zip(words, read(words=words), strict=True))
    for name in ("the", "king", "na\u00efve"):
        assert np.array_equal(embeddings[name], VECTORS[name])
    assert embeddings["king's"] == pytest.approx((VECTORS["king"] + VECTORS["s"]) / 2)
    others = [embeddings[name] for name in (quatrains.BREAK, "zyzzyva", "sea-king", "4")]
    assert np.std(others) == pytest.approx(np.std([*VECTORS.values()][:4]), rel=0.2)
    line = f"GloVe: {path} has 3 of 7 words, and the parts of 1 more; the others are random.\n"
    assert capsys.readouterr().out == line


def test_training_starts_from_glove_or_from_random_vectors_with_its_spread(verses):
    def start(**settings):
        lm, _ = quatrains.start_experiment(quatrains.make_settings(**QUICK | settings))
        king = lm.corpus.vocabulary.index("king")
        embeddings = lm.model.layers[0].get_weights()[0]
        return embeddings[king], np.delete(embeddings, king, 0)

    TEXT.write_bytes(glove_text())
    king, others = start(glove="auto", embedding_dim=50, name="auto")
    assert np.array_equal(king, VECTORS["king"])
    unscaled = start(glove="none", embedding_dim=50, name="none")[1]
    assert others == pytest.approx(unscaled * (VECTORS["king"].std() / quatrains.GLOVE_SPREAD))
    # Without GloVe, any size works.
    _, others = start(glove="none", embedding_dim=1234)
    assert others.shape[1] == 1234
    assert (others.mean(), others.std()) == pytest.approx((0, 0.4), abs=0.01)


def test_a_given_file_precedes_data_and_a_text_precedes_the_zip():
    TEXT.write_bytes(glove_text({"the": range(7, 57)}))
    ZIP.write_bytes(pack(glove_text({"the": range(8, 58)})))
    Path("mine.txt").write_bytes(glove_text({"the": range(50)}))
    for glove, value in (("auto", 7), (str(ZIP), 8), ("mine.txt", 0)):
        assert read(glove)[1, 0] == value


WORD = glove_text() + b"zyzzyva"
PACKED = pack(glove_text() * 200)
END = PACKED.index(b"PK\1\2")  # The second header starts after the compressed text.
DAMAGED = PACKED[: END - 5] + b"????" + PACKED[END - 1 :]
BAD_FILES = {
    "other size": (TEXT, glove_text({"the": [1] * 25}), "its vectors have 25 numbers: set embed"),
    "cut": (TEXT, WORD + b" 1" * 49 + b"\n", "zyzzyva has 49 numbers, not 50"),
    "cut at the word": (TEXT, WORD, "zyzzyva has 0 numbers, not 50"),
    "no number": (TEXT, WORD + b" 1" * 49 + b" x\n", "could not convert string to float"),
    "no word": (
        TEXT,
        glove_text({"unused": [9] * 50}),
        'is in the corpus; it starts with "unused 9 9',
    ),
    "zip cut": (ZIP, PACKED[:-30], "not a zip"),
    "zip of other sizes": (ZIP, pack(glove_text({"the": [1] * 25}), "x.25d.txt"), "25 numbers"),
    "damaged": (ZIP, DAMAGED, ""),
    "missing": ("nowhere.txt", None, "No such file"),
    "empty": (TEXT, b"\n", 'it starts with ""'),
    "packed": (TEXT, gzip.compress(glove_text()), "it starts with tabs or binary data"),
    "binary": (TEXT, b"5 50\nthe " + bytes(200) + b"\n", "it starts with tabs or binary data"),
    "tabs": (TEXT, glove_text().replace(b" ", b"\t"), "it starts with tabs or binary data"),
    "a pointer": (TEXT, b"version https://lfs/v1\noid", 'it starts with "version https://lfs/v1"'),
    "a page": (TEXT, b"<html>\n404", 'it starts with "<html>"'),
}


@pytest.mark.parametrize(("path", "content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(path, content, reason):
    if content:
        path.write_bytes(content)
    line = rf"GloVe file {path} cannot be used \((.+)\): set glove to another, or .*\"none\" .*"
    with pytest.raises(quatrains.UsageError) as error:
        read("auto" if content else path)
    assert reason in re.fullmatch(line, str(error.value))[1]
