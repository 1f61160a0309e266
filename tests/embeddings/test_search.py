"""The page that looks through a collection: what it finds, and what it keeps from whom."""

import contextlib
import http.client
import io
import itertools
import os
import pathlib
import random
import re
import resource
import socket
import threading
import urllib.parse

import numpy as np
import pytest
from etils import epath
from PIL import Image

from cyclip_jax import search
from cyclip_jax.embeddings import layout
from cyclip_jax.embeddings.collection import Collection
from cyclip_jax.embeddings.layout import Embeddings
from cyclip_jax.embeddings.nearest import by_faiss, exact
from cyclip_jax.embeddings.site import UPLOAD_BYTES
from cyclip_jax.embeddings.static_page import static_page
from cyclip_jax.embeddings.write import picture_sum
from cyclip_jax.errors import UserError
from cyclip_jax.evals.data.loose_pictures import open_pictures
from tests.embeddings.collections import HOSTILE, write_collection, write_shard
from tests.pictures import draw

BOUNDARY = "------part"
_CSP = "Content-Security-Policy"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return write_collection(tmp_path_factory.mktemp("collection"), hostile=f"a red {HOSTILE}")


@pytest.fixture(scope="module")
def collection(made):
    return made[0]


class Browser:
    """Sends requests to a server that runs in a thread."""

    def __init__(self, collection, **settings):
        listening = search._listen("127.0.0.1", 0)
        self.port = listening.getsockname()[1]
        self.server, self.address = search.create_server(
            collection, listening, title="shapes", **settings
        )
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self):
        with contextlib.suppress(OSError):  # its sockets are closed while it waits for them
            self.server.run()

    def __call__(self, path, method="GET", body=None, host=None, **headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Host": host or f"127.0.0.1:{self.port}"} | headers
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    def upload(self, content, origin=True, **headers):
        """Sends a picture as the page's form does."""
        head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="picture"; filename="a.png"'
        body = head.encode() + b"\r\n\r\n" + content + f"\r\n--{BOUNDARY}--\r\n".encode()
        headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"} | headers
        if origin:
            headers["Origin"] = f"http://127.0.0.1:{self.port}"
        return self("/picture", "POST", body, **headers)

    def raw(self, content):
        """Sends bytes as they are; returns what came back, if anything."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            try:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                found = b""
                while part := connection.recv(1 << 16):
                    found += part
            except OSError:  # it has hung up
                return b""
        return found

    def close(self):
        self.server.close()


@pytest.fixture(scope="module")
def browser(collection):
    browser = Browser(collection)
    yield browser
    browser.close()


def png_of(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def rows_in(page, heading):
    """The rows that the hits below a heading lead to."""
    part = page.partition(heading)[2].partition("</section>")[0]
    return [int(row) for row in re.findall(r'href="/\?like=(\d+)', part)]


# What is found


def test_the_nearest_rows_are_those_of_all_cosines():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8)).astype(np.float32)
    rows = np.concatenate([rows, rows[:50]])  # equal ones come in their order
    query, among = rng.normal(size=8).astype(np.float32), rng.random(550) < 0.5
    for allowed in (None, among):
        found, scores = exact(rows)(query, 60, allowed)
        cosines = rows @ query
        order = np.argsort(-cosines, kind="stable")
        order = order if allowed is None else order[allowed[order]]
        np.testing.assert_array_equal(found, order[:60])
        np.testing.assert_array_equal(scores, cosines[found])
    assert len(exact(rows)(query, 60, np.arange(550) == 3)[0]) == 1
    assert len(exact(rows)(query, 60, np.zeros(550, bool))[0]) == 0


def test_an_index_of_faiss_finds_the_same_where_it_compares_all():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(500, 8)).astype(np.float32)
    query, among = rng.normal(size=8).astype(np.float32), rng.random(500) < 0.5
    for allowed in (None, among):
        expected, scores = exact(rows)(query, 7, allowed)
        found, cosines = by_faiss(rows, "Flat")(query, 7, allowed)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(cosines, scores, rtol=1e-5)
    with pytest.raises(UserError, match="--faiss=Nonsense makes no index"):
        by_faiss(rows, "Nonsense")


def test_many_rows_ask_for_an_index(monkeypatch):
    monkeypatch.setattr("cyclip_jax.embeddings.nearest.MOST_ROWS", 9)
    with pytest.raises(UserError, match=r"--faiss"):
        exact(np.zeros((10, 2), np.float32))


def test_a_sentence_finds_pictures_and_captions(browser, collection):
    status, _, page = browser("/?text=a+green+ring&count=24")
    assert status == 200
    page = page.decode()
    for heading in ("Pictures that fit the sentence", "Captions like the sentence"):
        first = rows_in(page, heading)[0]
        assert collection.caption(first) == "a green ring"
    assert "in both" in page


def test_a_row_shows_its_neighbours_in_both_spaces(browser, collection):
    found = collection.find(collection.of_row(5), 4, without=5)
    assert [hit.row for hit in found.images] == [1, 9, 13, 17]  # of its colour
    assert [hit.row for hit in found.texts] == [4, 6, 7, 0]  # of its shape, then the first
    assert found.shared == 0 and not any(hit.in_both for hit in found.images)
    page = browser("/?like=5")[2].decode()
    shared, count, mean = re.search(
        r"<strong>(\d+) of (\d+)</strong> neighbours .*\n.* is ([\d.]+),", page
    ).groups()
    assert int(count) == 24 and int(shared) == 23  # all others
    assert float(mean) == 23.0
    assert 5 not in rows_in(page, "Pictures like this one")


def test_the_mean_of_shared_neighbours_is_that_of_single_rows(collection):
    shared = [
        collection.find(collection.of_row(row), 4, without=row).shared
        for row in range(collection.size)
    ]
    assert collection.mean_shared(4) == pytest.approx(np.mean(shared))


def test_words_narrow_what_is_found(browser, collection):
    page = browser("/?text=a+green+ring&where=GREEN+bar")[2].decode()
    rows = rows_in(page, "Pictures that fit the sentence")
    assert [collection.caption(row) for row in rows] == ["a green bar"]
    assert "Nothing is there." in browser("/?where=zebra")[2].decode()
    narrowed = browser("/?where=disc")[2].decode()  # a link keeps what narrows
    assert "where=disc" in re.search(r'href="(/\?like=[^"]*)"', narrowed)[1]


def test_an_uploaded_picture_finds_itself(browser, collection):
    status, _, page = browser.upload(png_of(draw("cross", "blue")))
    assert status == 200
    first = rows_in(page.decode(), "Pictures like this one")[0]
    assert collection.name(first) == "blue_cross.png"


def test_without_a_model_or_data_less_is_offered(collection, made, tmp_path):
    bare = Collection(Embeddings(str(made[1].parent.parent / "embedded")), exact)
    browser = Browser(bare)
    page = browser("/?like=3")[2].decode()
    assert 'name="text"' not in page and "<img" not in page and "a grey square" in page
    assert browser("/?text=a")[0] == 400 and browser("/thumbnail/3")[0] == 404
    assert browser.upload(png_of(draw("cross", "blue")))[0] == 400
    browser.close()


def test_the_gallery_needs_no_server_and_no_script(collection):
    page = static_page(collection, title=HOSTILE, texts=["a red bar", HOSTILE], pictures=5)
    assert "<script" not in page.lower() and "<img" not in page
    assert page.count("&lt;/script&gt;") >= 3
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page
    assert page.count("<section") == 2 + 5
    assert not re.search(r"(?:src|href)=\"(?!#)", page)  # nothing is fetched
    assert set(re.findall(r"url\((\w+:\w+/\w+)", page)) == {"data:image/jpeg"}


# What is kept from whom


def test_it_listens_to_this_machine_alone_and_others_need_a_token(collection):
    assert search._listen("127.0.0.1", 0).getsockname()[0] == "127.0.0.1"
    flags = search.flags.FlagValues()
    search.define_flags(flags)
    assert flags["host"].default == "127.0.0.1"
    browser = Browser(collection, host="0.0.0.0")  # as it would be told of one that others reach
    token = browser.address.partition("?token=")[2]
    assert len(token) >= 40
    for path in ("/", "/page.css", "/thumbnail/3", "/?token=", "/?token=a", "/?token=%00%FF"):
        assert browser(path)[0] == 403
    assert browser("/", Cookie="cyclip_jax_search=é".encode("latin-1"))[0] == 403
    status, headers, _ = browser(f"/?token={token}&text=a+red+bar")
    assert (status, headers["Location"]) == (303, "/?text=a+red+bar")
    cookie = headers["Set-Cookie"]
    assert "HttpOnly" in cookie and "SameSite=Strict" in cookie
    status, _, page = browser("/", Cookie=cookie.partition(";")[0])
    assert status == 200 and token not in page.decode()
    browser.close()


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1", "localhost:1", "", "[::1"])
def test_it_answers_only_under_its_own_name(browser, host):
    request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = browser.raw(request.encode())
    assert answer.split()[1] == b"421" and b"shapes" not in answer
    assert browser("/", host=f"localhost:{browser.port}")[0] == 200
    assert browser("/", host=f"LOCALHOST:{browser.port}")[0] == 200


def test_a_form_is_taken_from_the_own_page_alone(browser):
    picture = png_of(draw("cross", "blue"))
    for origin in (None, "null", "http://evil.example", f"https://127.0.0.1:{browser.port}"):
        headers = {} if origin is None else {"Origin": origin}
        assert browser.upload(picture, origin=False, **headers)[0] == 403
    for method in ("PUT", "DELETE", "PATCH"):
        assert browser("/", method, Origin=f"http://127.0.0.1:{browser.port}")[0] == 405


OUTSIDE = [
    "/../data/train.csv",
    "/%2e%2e/data/train.csv",
    "/..%2f..%2fetc/passwd",
    "/..%5c..%5cetc%5cpasswd",
    "/thumbnail/../../etc/passwd",
    "/thumbnail/..%2f..%2fetc%2fpasswd",
    "/thumbnail/%2fetc%2fpasswd",
    "/thumbnail/-1",
    "/thumbnail/1.5",
    "/thumbnail/99999999999999999999999999",
    "/thumbnail/24",
    "/thumbnail/3%00.png",
    "/pages/search.html",
    "/search.html",
    "/static/page.css",
    "/page.css/../search.html",
    "//etc/passwd",
    "/red_square.png",
    "/data/red_square.png",
    "file:///etc/passwd",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_nothing_but_its_own_addresses_is_served(browser, path):
    head = f"Host: 127.0.0.1:{browser.port}\r\nConnection: close"
    answer = browser.raw(f"GET {path} HTTP/1.1\r\n{head}\r\n\r\n".encode())
    assert answer.split()[1] in (b"400", b"404"), answer[:200]
    assert b"root:" not in answer and b"{%" not in answer and b"JFIF" not in answer


def test_thumbnails_are_encoded_anew_and_others_are_never_shown(tmp_path):
    collection, data = write_collection(tmp_path)
    picture = data.parent / "red_square.png"
    secret = tmp_path / "secret.png"
    Image.fromarray(draw("ring", "blue")).save(secret)
    assert collection.thumbnail(0)[:3] == b"\xff\xd8\xff"  # a JPEG; the data are PNG
    collection, _ = write_collection(tmp_path)
    picture.unlink()
    picture.symlink_to(secret)  # it came there after the data were embedded
    (data.parent / "green_square.png").write_bytes(b"<svg onload=alert(1)>")
    assert collection.thumbnail(0) is collection.thumbnail(1) is None
    assert collection.thumbnail(2) is not None


def test_metadata_of_a_picture_does_not_leave_with_its_thumbnail(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "taken at home"
    path = tmp_path / "one.png"
    Image.fromarray(draw("square", "red")).save(path, exif=exif)
    assert b"taken at home" in path.read_bytes()
    rows = np.eye(1, 4)
    sums = [picture_sum(path.read_bytes())]
    write_shard(epath.Path(tmp_path), [path.name], [None], rows, None, sums)
    source = open_pictures(str(path)).source
    thumbnail = Collection(Embeddings(str(tmp_path)), exact, None, source).thumbnail(0)
    assert thumbnail is not None and b"taken at home" not in thumbnail


def test_captions_and_names_are_text(browser, collection):
    row = collection.size - 1
    assert HOSTILE in collection.caption(row)
    for path in ("/", f"/?like={row}", f"/?text={urllib.parse.quote(HOSTILE)}", "/?where=alert"):
        page = browser(path)[2].decode()
        assert page.count("<script") == 1 and 'src="/page.js"' in page
        assert "onerror=alert" not in page.replace("&lt;img src=x onerror=alert(2)&gt;", "")
    assert "&lt;/script&gt;" in browser(f"/?like={row}")[2].decode()


def test_the_browser_is_told_to_fetch_nothing_from_elsewhere(browser):
    for path in ("/", "/?like=3", "/page.css", "/page.js", "/thumbnail/3", "/nothing"):
        _, headers, _ = browser(path)
        policy = dict(part.strip().split(" ", 1) for part in headers[_CSP].split(";"))
        assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["form-action"] == "'self'"
        assert headers["X-Content-Type-Options"] == "nosniff"
    pages = pathlib.Path(layout.__file__).parent / "pages"
    for file in pages.glob("*.*"):
        assert not re.search(r"(?:https?:)?//\w", re.sub(r"//\s.*", "", file.read_text()))


def test_addresses_in_the_metadata_are_never_fetched(tmp_path, monkeypatch):
    rows = np.eye(3, 4)
    urls = [f"http://127.0.0.1:9/{number}.png" for number in range(3)]
    write_shard(epath.Path(tmp_path), urls, ["a"] * 3, rows, rows, [None] * 3)
    collection = Collection(Embeddings(str(tmp_path)), exact)
    monkeypatch.setattr(socket, "create_connection", lambda *_, **__: pytest.fail("it fetches"))
    assert [collection.thumbnail(row) for row in range(3)] == [None] * 3


def test_uploads_are_bounded_before_they_are_decoded(browser):
    header = png_of(np.zeros((1, 1, 3), np.uint8))
    huge = header[:16] + (30_000).to_bytes(4, "big") * 2 + header[24:]
    status, _, page = browser.upload(huge)
    assert status == 400 and b"too large" in page
    assert browser.upload(b"x" * (UPLOAD_BYTES + 1))[0] == 413
    for content in (b"", b"no picture", header[:30], b"%PDF-1.4", b"<svg/>"):
        status, _, page = browser.upload(content)
        assert status == 400 and b"choose" in page, content
    body = b"".join(
        f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{n}"\r\n\r\nx\r\n'.encode()
        for n in range(50)
    )
    status, _, _ = browser(
        "/picture",
        "POST",
        body + f"--{BOUNDARY}--".encode(),
        Origin=f"http://127.0.0.1:{browser.port}",
        **{"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    assert status in (400, 413)


def test_arrays_with_pickles_are_refused(tmp_path, made):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "burst"),)

    collection = made[1].parent.parent / "embedded"
    for kind in (layout.IMAGES, layout.TEXTS, layout.METADATA):
        (tmp_path / "bad" / kind).mkdir(parents=True)
        for path in (collection / kind).iterdir():
            (tmp_path / "bad" / kind / path.name).write_bytes(path.read_bytes())
    path = next((tmp_path / "bad" / layout.IMAGES).iterdir())
    np.save(path, np.array([Bomb()] * 24, object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        _ = Embeddings(str(tmp_path / "bad")).shards
    assert not (tmp_path / "burst").exists()


def requests_of(random, port):
    """A malformed request after another."""
    own = f"Host: 127.0.0.1:{port}\r\n"
    whole = f"GET /?text=a+red+bar&count=24 HTTP/1.1\r\n{own}\r\n".encode()
    parts = ["text", "like", "where", "count", "space", "token", "\x00", "%ff", "[]", "é"]
    while True:
        kind = random.randrange(6)
        if kind == 0:  # single bytes changed
            request = bytearray(whole)
            for _ in range(random.randrange(1, 8)):
                request[random.randrange(len(request))] = random.randrange(256)
            yield bytes(request)
        elif kind == 1:  # cut short
            yield whole[: random.randrange(len(whole))]
        elif kind == 2:  # odd values
            query = "&".join(
                f"{random.choice(parts)}={urllib.parse.quote(random.randbytes(random.randrange(9)))}"
                for _ in range(random.randrange(5))
            )
            yield f"GET /?{query} HTTP/1.1\r\n{own}\r\n".encode()
        elif kind == 3:  # lies about a body
            length = random.choice(["-1", "99999999999", "0x10", "1e3", "", "5, 6"])
            yield f"POST /picture HTTP/1.1\r\n{own}Content-Length: {length}\r\n\r\nabc".encode()
        elif kind == 4:  # forms that are none
            body = random.randbytes(random.randrange(200))
            head = f"POST /picture HTTP/1.1\r\n{own}Origin: http://127.0.0.1:{port}\r\n"
            head += f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n"
            body = f"--{BOUNDARY}\r\n".encode() + body
            yield f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body
        else:
            head = f"X-{random.randbytes(3).hex()}: {'y' * random.choice([1, 20_000])}\r\n"
            yield f"GET /thumbnail/{random.randbytes(4).hex()} HTTP/1.1\r\n{own}{head}\r\n".encode()


def test_a_thousand_malformed_requests_leave_it_as_it_was(browser, capfd):
    requests, before = requests_of(random.Random(0), browser.port), 0
    for number, request in enumerate(itertools.islice(requests, 1000)):
        answer = browser.raw(request)
        assert b"Traceback" not in answer and b"File &#34;" not in answer, request
        assert answer[:12] != b"HTTP/1.1 500", request
        if number == 100:  # what is loaded once is there
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert browser("/?text=a+red+bar")[0] == 200
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 32 << 10  # KiB
    assert "Traceback" not in capfd.readouterr().err
