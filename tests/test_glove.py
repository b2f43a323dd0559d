"""GloVe vectors: both containers, damaged copies, and what starts at random."""

import re
import struct
import zipfile

import numpy as np
import pytest

import quatrains

WORDS = [quatrains.BREAK, "the", "king", "na\u00efve", "zyzzyva"]
VECTORS = {"the": [0.5] * 50, "king": [-1.25e-1] * 50, "na\u00efve": [2.0] * 50, "unused": [9] * 50}
TEXT, ZIP = "data/glove.6B.50d.txt", "data/glove.6B.zip"


def glove_text(vectors=VECTORS):
    lines = (f"{word} {' '.join(map(str, vector))}\n" for word, vector in vectors.items())
    return "".join(lines).encode()


def make_zip(path, text, member="glove.6B.50d.txt", method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr(member, text)
    return path


@pytest.fixture(autouse=True)
def in_folder(tmp_path, monkeypatch):
    """A working directory with an empty data folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def start(glove="auto", dim=50, words=WORDS):
    settings = quatrains.Settings(glove=glove, embedding_dim=dim)
    return quatrains.start_embeddings(words, settings, np.random.default_rng(3))


def refused(glove="auto", dim=50):
    """The one line that refuses a GloVe file."""
    with pytest.raises(quatrains.InputError) as error:
        start(glove, dim)
    told = re.fullmatch(
        r"GloVe file \S+ cannot be used \((.+)\): set glove to .+", str(error.value)
    )
    return told[1]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
@pytest.mark.parametrize("container", [None, zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_known_words_start_from_glove_and_the_others_at_random(in_folder, container, mark, capsys):
    if container is None:
        (in_folder / TEXT).write_bytes(mark + glove_text())
    else:
        make_zip(in_folder / ZIP, mark + glove_text(), method=container)
    embeddings = start()
    assert (embeddings.shape, embeddings.dtype) == ((5, 50), np.float32)
    for word in ("the", "king", "na\u00efve"):
        assert embeddings[WORDS.index(word)] == pytest.approx(np.array(VECTORS[word]))
    assert np.array_equal(embeddings[[0, 4]], start("none")[[0, 4]])
    path = TEXT if container is None else ZIP
    told = f"GloVe: {path} knows 3 words; 1 and the break start random.\n"
    assert capsys.readouterr().out == told


def test_random_rows_have_the_spread_of_glove():
    embeddings = start("none", words=["w"] * 2000)
    assert embeddings.mean() == pytest.approx(0, abs=0.01)
    assert embeddings.std() == pytest.approx(0.4, abs=0.01)


def test_a_named_file_is_read_and_data_not_and_a_text_is_taken_before_the_zip(in_folder):
    (in_folder / TEXT).write_bytes(glove_text({"the": [7] * 50}))
    make_zip(in_folder / ZIP, glove_text({"the": [8] * 50}))
    (in_folder / "mine.txt").write_bytes(glove_text())
    make_zip(in_folder / "mine.ZIP", glove_text())
    assert start()[1] == pytest.approx(7)
    assert start(ZIP)[1] == pytest.approx(8)
    assert start("mine.txt")[1] == pytest.approx(0.5)
    assert start("mine.ZIP")[1] == pytest.approx(0.5)


def test_a_file_that_knows_no_word_leaves_all_random(in_folder, capsys):
    (in_folder / TEXT).write_bytes(glove_text({"unused": [9] * 50}))
    assert np.array_equal(start(), start("none"))
    assert "knows 0 words; 4 and the break start random" in capsys.readouterr().out


LINES = [b"caf\xe9 " + b"1 " * 50, b"<unk> 1 2 3", b"other " + b"x " * 50, b"\n"]


@pytest.mark.parametrize("line", LINES, ids=["not UTF-8", "short", "no numbers", "empty"])
def test_lines_of_words_that_the_corpus_lacks_are_not_looked_at(in_folder, line):
    (in_folder / TEXT).write_bytes(glove_text())
    whole = start()
    (in_folder / TEXT).write_bytes(glove_text() + line)
    assert np.array_equal(start(), whole)


WORD = glove_text() + b"zyzzyva"
BAD_LINES = {
    "short": (b"the 1 2 3\n" + glove_text(), "line 1 has not 50 numbers"),
    "other size": (b"unknown 1 2 3\n" + glove_text(), "line 1 has not 50 numbers"),
    "header": (b"400000 50\n" + glove_text(), "line 1 has not 50 numbers"),
    "binary": (b"\x89PNG\r\n\x1a\n" * 9, "line 1 has not 50 numbers"),
    "cut": (WORD + b" 1" * 49 + b"\n", "line 5 has not 50 numbers"),
    "cut at the word": (WORD, "line 5 has not 50 numbers"),
    "long": (WORD + b" 1" * 51 + b"\n", "line 5 has not 50 numbers"),
    "nan": (WORD + b" 1" * 49 + b" nan\n", "line 5 has not 50 numbers"),
    "no number": (WORD + b" 1" * 49 + b" x\n", "could not convert string to float: .*x.*"),
}


@pytest.mark.parametrize(("content", "told"), BAD_LINES.values(), ids=BAD_LINES)
def test_lines_that_are_looked_at_must_be_right(in_folder, content, told):
    (in_folder / TEXT).write_bytes(content)
    assert re.fullmatch(told, refused())


def change_members(path, place, value):
    """Change a field in both headers of a zip's only member, by its place in the first."""
    packed = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\3\4", place), (b"PK\1\2", place + 2)):
        struct.pack_into("<H", packed, packed.index(signature) + offset, value)
    path.write_bytes(packed)


BAD_ZIPS = {
    "no zip": (lambda path: path.write_bytes(b"not a zip"), "not a zip"),
    "cut": (lambda path: path.write_bytes(path.read_bytes()[:-30]), "not a zip"),
    "other sizes": (lambda path: make_zip(path, b"", "glove.6B.100d.txt"), "glove.6B.50d.txt"),
    "encrypted": (lambda path: change_members(path, 6, 1), "encrypted"),
    "method": (lambda path: change_members(path, 8, 97), "compression method"),
}


@pytest.mark.parametrize(("damage", "reason"), BAD_ZIPS.values(), ids=BAD_ZIPS)
def test_bad_zips_are_refused(in_folder, damage, reason):
    damage(make_zip(in_folder / ZIP, glove_text()))
    assert reason in refused()


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA])
def test_a_zip_damaged_inside_is_refused(in_folder, method):
    path = make_zip(in_folder / ZIP, glove_text() * 200, method=method)
    whole = path.read_bytes()
    for place in (60, whole.index(b"PK\1\2") - 5):
        path.write_bytes(whole[:place] + b"????" + whole[place + 4 :])
        assert refused()


def test_a_missing_file_is_refused():
    assert "No such file" in refused("nowhere.txt")
    assert "No such file" in refused("nowhere.zip")
    assert "Is a directory" in refused("data")


def test_auto_refuses_a_size_that_glove_lacks_and_none_allows_any():
    told = "^embedding_dim = 128 will not do for GloVe: choose one of .*50, 100, 200, 300.* none"
    with pytest.raises(quatrains.InputError, match=told):
        start(dim=128)
    assert start("none", 128).shape == (5, 128)
