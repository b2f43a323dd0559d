"""GloVe vectors: both file formats, damaged files, and random vectors."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import quatrains
from conftest import QUICK

WORDS = [quatrains.BREAK, "the", "king", "na\u00efve", "zyzzyva"]
VECTORS = {"the": [0.5] * 50, "king": [-1.25e-1] * 50, "na\u00efve": [2.0] * 50, "unused": [9] * 50}
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


def read(glove="auto"):
    """Return the embeddings of WORDS, which are 3 before GloVe replaces them."""
    embeddings = np.full((len(WORDS), 50), 3, np.float32)
    quatrains.read_glove(quatrains.find_glove(glove, 50), WORDS, embeddings)
    return embeddings


# Lines of words that are not in the corpus are not parsed.
CONTENT = b"caf\xe9 1 2\n\n<unk> x\n" + glove_text() + b"other 1 2 3"


@pytest.mark.parametrize(("path", "content"), [(TEXT, CONTENT), (ZIP, pack(CONTENT))])
def test_known_words_get_their_vectors_from_text_or_zip(path, content, capsys):
    path.write_bytes(content)
    assert np.array_equal(read(), [VECTORS.get(word, [3] * 50) for word in WORDS])
    line = f"GloVe: {path} has 3 of 4 words; the others are random.\n"
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
    assert np.array_equal(others, start(glove="none", embedding_dim=50, name="none")[1])
    # Without GloVe, any size works.
    _, others = start(glove="none", embedding_dim=1234)
    assert others.shape[1] == 1234
    assert (others.mean(), others.std()) == pytest.approx((0, 0.4), abs=0.01)


def test_a_given_file_precedes_data_and_a_text_precedes_the_zip():
    TEXT.write_bytes(glove_text({"the": [7] * 50}))
    ZIP.write_bytes(pack(glove_text({"the": [8] * 50})))
    Path("mine.txt").write_bytes(glove_text())
    for glove, value in (("auto", 7), (str(ZIP), 8), ("mine.txt", 0.5)):
        assert np.array_equal(read(glove)[1], [value] * 50)


WORD = glove_text() + b"zyzzyva"
PACKED = pack(glove_text() * 200)
END = PACKED.index(b"PK\1\2")  # The second header starts after the compressed text.
DAMAGED = PACKED[: END - 5] + b"????" + PACKED[END - 1 :]
BAD_FILES = {
    "other size": (TEXT, glove_text({"the": [1] * 100}), "the has 100 numbers, not 50"),
    "cut": (TEXT, WORD + b" 1" * 49 + b"\n", "zyzzyva has 49 numbers, not 50"),
    "cut at the word": (TEXT, WORD, "zyzzyva has 0 numbers, not 50"),
    "no number": (TEXT, WORD + b" 1" * 49 + b" x\n", "could not convert string to float"),
    "no word": (TEXT, glove_text({"unused": [9] * 50}), "none of its words is in the corpus"),
    "zip cut": (ZIP, PACKED[:-30], "not a zip"),
    "zip of other sizes": (ZIP, pack(b"", "glove.6B.100d.txt"), "glove.6B.50d.txt"),
    "damaged": (ZIP, DAMAGED, ""),
    "missing": ("nowhere.txt", None, "No such file"),
}


@pytest.mark.parametrize(("path", "content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(path, content, reason):
    if content:
        path.write_bytes(content)
    line = rf"GloVe file {path} cannot be used \((.+)\): set glove to another, or .*\"none\" .*"
    with pytest.raises(quatrains.UsageError) as error:
        read("auto" if content else path)
    assert reason in re.fullmatch(line, str(error.value))[1]
