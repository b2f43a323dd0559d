"""Fetching GloVe from a server on this machine, which also misbehaves."""

import functools
import hashlib
import http.server
import io
import re
import socket
import threading
import zipfile

import numpy as np
import pytest

import quatrains
from quatrains import keras

WORDS = [quatrains.BREAK, "king", "eagle", "zyzzyva"]
KING = np.full(50, 0.5)
TEXT = b"king" + 50 * b" 0.5" + b"\neagle" + 50 * b" 0.25" + b"\n"
CACHED = "home/datasets/glove.6B.zip"
PACKED = io.BytesIO()
with zipfile.ZipFile(PACKED, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("glove.6B.50d.txt", TEXT)
ARCHIVE = PACKED.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the archive; the first part of the path says how it misbehaves."""

    def do_GET(self):
        how = self.path.split("/")[1]
        self.server.asked.append(how)
        if how == "404":
            return self.send_error(404)
        content = ARCHIVE.replace(b"eagle", b"raven") if how == "wrong" else ARCHIVE
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if how in ("cut", "stalled") else content)
        if how == "stalled":
            self.wfile.flush()
            if not self.server.released.wait(40):
                self.server.asked.append("waited for in vain")
        return None

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked = []
    server.released = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}/{{}}/glove.6B.zip"
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(server, tmp_path, monkeypatch):
    """Start embeddings with GloVe from the server, in a folder to work in with a Keras home."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()  # As Keras does when it is imported.
    get_file = functools.partial(keras.utils.get_file, cache_dir=tmp_path / "home")
    monkeypatch.setattr(keras.utils, "get_file", get_file)
    monkeypatch.setattr(quatrains, "GLOVE_SHA256", hashlib.sha256(ARCHIVE).hexdigest())
    wait = socket.setdefaulttimeout
    monkeypatch.setattr(socket, "setdefaulttimeout", lambda seconds: wait(seconds and 0.4))

    def fetch(how, glove="auto"):
        url = server.url.format(how) if how != "nobody" else "http://127.0.0.1:1/glove.6B.zip"
        monkeypatch.setattr(quatrains, "GLOVE_URL", url)
        settings = quatrains.Settings(glove=glove, embedding_dim=50)
        return quatrains.start_embeddings(WORDS, settings, np.random.default_rng(3))

    return fetch


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def line_of(capsys):
    """Return the line after the announcement; Keras shows how far it is."""
    announced, line = re.findall(r"^GloVe: .*$", capsys.readouterr().out, re.MULTILINE)
    assert "fetched, 862 MB, this once; " in announced
    assert 'glove = "none" (--glove none)' in announced
    return line


def test_vectors_are_fetched_once_and_anew_where_they_are_cut_short(
    fetch, server, tmp_path, capsys
):
    embeddings = fetch("good")
    assert files(tmp_path) == {CACHED}
    assert np.array_equal(embeddings[1], KING)
    assert line_of(capsys).startswith(f"GloVe: {tmp_path / CACHED} knows 2 ")
    assert np.array_equal(fetch("good"), embeddings)
    assert server.asked == ["good"]

    (tmp_path / CACHED).write_bytes(ARCHIVE[:-100])
    assert np.array_equal(fetch("404"), fetch("404", "none"))
    assert np.array_equal(fetch("good"), embeddings)
    assert (tmp_path / CACHED).read_bytes() == ARCHIVE
    assert server.asked == ["good", "404", "good"]


@pytest.mark.parametrize("how", ["404", "wrong", "cut", "stalled", "nobody"])
def test_what_cannot_be_fetched_is_one_line_and_is_never_read(fetch, server, capsys, how):
    embeddings = fetch(how)
    failed = line_of(capsys)
    assert re.match(r"GloVe: not to be had \(.+\), so all words start random; .*\"none\"", failed)
    assert np.array_equal(embeddings, fetch(how, "none"))
    assert socket.getdefaulttimeout() is None

    assert np.array_equal(fetch("good")[1], KING)
    assert server.asked == [*[how] * (how != "nobody"), "good"]


def test_data_is_looked_into_first_and_none_asks_nobody(fetch, server, tmp_path, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/glove.6B.zip").write_bytes(ARCHIVE)
    assert np.array_equal(fetch("good")[1], KING)
    assert capsys.readouterr().out.startswith("GloVe: data/glove.6B.zip knows 2 ")
    fetch("good", "none")
    assert (server.asked, capsys.readouterr().out) == ([], "")


def test_a_home_that_cannot_be_written_is_one_line(fetch, server, tmp_path, capsys):
    (tmp_path / "home").rmdir()
    (tmp_path / "home").write_text("a file")
    assert np.array_equal(fetch("good"), fetch("good", "none"))
    assert line_of(capsys).startswith("GloVe: not to be had (")
    assert server.asked == []
