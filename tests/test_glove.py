"""GloVe vectors: both containers, damaged copies, and what starts at random."""

import io
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest

import quatrains

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


def start(glove="auto", dim=50, words=WORDS):
    settings = quatrains.Settings(glove=str(glove), embedding_dim=dim)
    return quatrains.start_embeddings(words, settings, np.random.default_rng(3))


def refused(glove="auto"):
    """Return the reason in the one line that refuses a GloVe file."""
    told = r"^GloVe file \S+ cannot be used \((.+)\): .+$"
    with pytest.raises(quatrains.InputError, match=told) as error:
        start(glove)
    return re.match(told, str(error.value))[1]


@pytest.mark.parametrize(("path", "content"), [(TEXT, glove_text()), (ZIP, pack(glove_text()))])
def test_known_words_start_from_glove_and_the_others_at_random(path, content, capsys):
    path.write_bytes(content)
    embeddings = start()
    assert (embeddings.shape, embeddings.dtype) == ((5, 50), np.float32)
    for word in ("the", "king", "na\u00efve"):
        assert embeddings[WORDS.index(word)] == pytest.approx(np.array(VECTORS[word]))
    assert np.array_equal(embeddings[[0, 4]], start("none")[[0, 4]])
    assert re.fullmatch(rf"GloVe: {path} knows 3 .*random\.\n", capsys.readouterr().out)


def test_random_rows_have_the_spread_of_glove_and_any_size():
    embeddings = start("none", 128, ["w"] * 2000)
    assert embeddings.shape == (2000, 128)
    assert embeddings.mean() == pytest.approx(0, abs=0.01)
    assert embeddings.std() == pytest.approx(0.4, abs=0.01)


def test_a_named_file_is_read_and_data_not_and_a_text_is_taken_before_the_zip():
    TEXT.write_bytes(glove_text({"the": [7] * 50}))
    ZIP.write_bytes(pack(glove_text({"the": [8] * 50})))
    Path("mine.txt").write_bytes(glove_text())
    for glove, value in (("auto", 7), (ZIP, 8), ("mine.txt", 0.5)):
        assert start(glove)[1] == pytest.approx(value)


@pytest.mark.parametrize("line", [b"caf\xe9 " + b"1 " * 50, b"<unk> 1 2 3", b"other x", b""])
def test_lines_of_words_that_the_corpus_lacks_are_not_looked_at(line):
    TEXT.write_bytes(glove_text())
    whole = start()
    TEXT.write_bytes(line + b"\n" + glove_text() + line)
    assert np.array_equal(start(), whole)


WORD = glove_text() + b"zyzzyva"
PACKED = pack(glove_text() * 200)
END = PACKED.index(b"PK\1\2")  # Of the packed text, where the second header begins.


def change(places, value):
    packed = bytearray(PACKED)
    for place in places:
        packed[place : place + len(value)] = value
    return bytes(packed)


BAD_FILES = {
    "other size": (TEXT, glove_text({"the": [1] * 100}), "the has not 50 numbers"),
    "cut": (TEXT, WORD + b" 1" * 49 + b"\n", "zyzzyva has not 50 numbers"),
    "cut at the word": (TEXT, WORD, "zyzzyva has not 50 numbers"),
    "nan": (TEXT, WORD + b" 1" * 49 + b" nan\n", "zyzzyva has not 50 numbers"),
    "no number": (TEXT, WORD + b" 1" * 49 + b" x\n", "could not convert string to float"),
    "no word": (TEXT, glove_text({"unused": [9] * 50}), "it has no word of the corpus"),
    "zip cut": (ZIP, PACKED[:-30], "not a zip"),
    "zip of other sizes": (ZIP, pack(b"", "glove.6B.100d.txt"), "glove.6B.50d.txt"),
    "encrypted": (ZIP, change((6, END + 8), b"\1\0"), "encrypted"),
    "spoilt at the start": (ZIP, change([60], b"????"), ""),
    "spoilt at the end": (ZIP, change([END - 5], b"????"), ""),
}


@pytest.mark.parametrize(("path", "content", "reason"), BAD_FILES.values(), ids=BAD_FILES)
def test_bad_files_are_refused(path, content, reason):
    path.write_bytes(content)
    assert reason in refused()


def test_missing_files_and_sizes_are_refused():
    assert "No such file" in refused("nowhere.txt")
    assert "Is a directory" in refused("data")
    with pytest.raises(quatrains.InputError, match=r'embedding_dim.*50, 100, 200, 300.*= "none"'):
        start(dim=128)
