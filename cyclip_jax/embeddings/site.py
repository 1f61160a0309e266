"""The page that looks through a collection, as a server on this machine alone.

What reaches it is hostile: captions and names come from anywhere, and any page that is open in the
same browser may send requests. So it answers only under its own name, takes a form only from its
own page, shows pictures only as it encoded them itself, and lets the browser fetch nothing from
elsewhere.
"""

import base64
import functools
import re
import secrets
import urllib.parse
from collections.abc import Mapping
from typing import Any

import flask
import werkzeug.exceptions

from cyclip_jax.data.record import Unreadable
from cyclip_jax.embeddings.collection import MOST_HITS, Collection
from cyclip_jax.embeddings.pages import PAGES, style_sheet

UPLOAD_BYTES = 20 << 20
_TEXT_LENGTH = 1000
_COUNTS = (24, 48, 96, MOST_HITS)
_SPACES = {
    "both": ("images", "texts"),
    "images": ("images",),
    "texts": ("texts",),
}
_COOKIE, _TOKEN = "cyclip_jax_search", "token"
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # with none, browsers would hide a form's origin from us, too
    "X-Content-Type-Options": "nosniff",
}


class Refused(werkzeug.exceptions.HTTPException):
    """A request that is answered with a status and a sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code: int | None = code


def create_site(
    collection: Collection, *, title: str, hosts: frozenset[str], token: str | None = None
) -> flask.Flask:
    """The application.

    Args:
      collection: what is looked through.
      title: of the page.
      hosts: host:port, as requests may name this server.
      token: what a browser must show first; None lets everybody in who reaches the server.

    Returns:
      A WSGI application.
    """
    site = flask.Flask(__name__, static_folder=None, template_folder=str(PAGES))
    site.config.update(
        MAX_CONTENT_LENGTH=UPLOAD_BYTES, MAX_FORM_MEMORY_SIZE=1 << 16, MAX_FORM_PARTS=8
    )
    site.jinja_env.trim_blocks = site.jinja_env.lstrip_blocks = True
    pages = _Pages(collection, title)
    site.before_request(functools.partial(_check, hosts, token))
    site.after_request(_with_headers)
    site.register_error_handler(Exception, _failed)
    site.add_url_rule("/", "page", pages.page, methods=["GET"])
    site.add_url_rule("/picture", "picture", pages.by_picture, methods=["POST"])
    site.add_url_rule("/thumbnail/<int:row>", "thumbnail", pages.thumbnail, methods=["GET"])
    site.add_url_rule("/page.css", "css", _css, methods=["GET"])
    site.add_url_rule("/page.js", "js", _js, methods=["GET"])
    return site


def _check(hosts, token):
    """Refuses a request of another page, or of somebody without the token."""
    request = flask.request
    host = request.environ.get("HTTP_HOST", "")
    if host.lower() not in hosts:
        raise Refused(421, "this server answers only under its own name")
    is_form = request.method not in ("GET", "HEAD", "OPTIONS")
    if is_form and request.headers.get("Origin") != f"http://{host}":
        raise Refused(403, "a form is taken only from this server's own page")
    if token is None:
        return None
    given = request.args.get(_TOKEN)
    if given is not None and _equal(given, token):
        rest = [(key, value) for key, value in request.args.items(multi=True) if key != _TOKEN]
        answer = flask.redirect(f"/?{urllib.parse.urlencode(rest)}", 303)
        answer.set_cookie(_COOKIE, token, httponly=True, samesite="Strict")
        return answer
    if not _equal(request.cookies.get(_COOKIE, ""), token):
        raise Refused(403, "open the address with the token, which the command printed")
    return None


def _equal(given, token):
    return secrets.compare_digest(given.encode("utf-8", "replace"), token.encode())


def _with_headers(answer):
    answer.headers.update(HEADERS)
    if answer.mimetype == "image/jpeg":
        answer.headers["Cache-Control"] = "private, max-age=3600"
    return answer


def _failed(error):
    """A sentence in place of whatever was raised."""
    if not isinstance(error, werkzeug.exceptions.HTTPException):
        flask.current_app.logger.error("a request failed", exc_info=error)
        code, sentence = 500, "the server failed; the terminal says how"
    else:
        code = error.code or 500
        # werkzeug's descriptions are sentences of its own, without what the request held.
        sentence = error.description or error.name
    page = flask.render_template("failed.html", code=code, sentence=sentence)
    return flask.Response(page, code)


def _css():
    return flask.Response(style_sheet(), mimetype="text/css")


def _js():
    return flask.Response((PAGES / "page.js").read_text(), mimetype="text/javascript")


class _Pages:
    """What the addresses answer."""

    def __init__(self, collection, title):
        self._collection, self._title = collection, title

    def page(self) -> str:
        """What is asked by the address: it can be kept and sent."""
        asked = _asked(flask.request.args)
        collection, shown = self._collection, {}
        if asked["like"] is not None:
            row = asked["like"]
            if row >= collection.size:
                raise Refused(404, f"the collection has {collection.size} rows, from 0")
            query = collection.of_row(row)
            shown = {"row": row, "name": collection.name(row), "caption": collection.caption(row)}
        elif asked["text"]:
            if collection.encoders is None:
                raise Refused(400, "there is no model to embed a sentence; give --checkpoint")
            query = collection.of_text(asked["text"])
        else:
            return self._overview(asked)
        return self._answer(query, asked, shown)

    def by_picture(self) -> str:
        """The neighbours of a picture that the form carries."""
        if self._collection.encoders is None:
            raise Refused(400, "there is no model to embed a picture; give --checkpoint")
        asked = _asked(flask.request.form)
        given = flask.request.files.get("picture")
        content = b"" if given is None else given.read(UPLOAD_BYTES)
        if given is None or not content:
            raise Refused(400, "the form has no picture; choose a file")
        try:
            query, thumbnail = self._collection.of_picture(content)
        except Unreadable as error:
            raise Refused(400, f"{error.reason}; choose another file") from error
        asked |= {"text": "", "like": None}
        dropped = base64.b64encode(thumbnail).decode()
        return self._answer(query, asked, {"dropped": dropped, "name": given.filename or ""})

    def thumbnail(self, row: int) -> flask.Response:
        """A picture of the collection, encoded here."""
        picture = self._collection.thumbnail(row) if row < self._collection.size else None
        if picture is None:
            raise Refused(404, "the picture is not there, or another one than was embedded")
        return flask.Response(picture, mimetype="image/jpeg")

    def _overview(self, asked):
        rows = self._collection.spread(asked["count"], asked["where"])
        return self._rendered(asked, {}, overview=[self._collection.plain(row) for row in rows])

    def _answer(self, query, asked, shown):
        found = self._collection.find(
            query,
            asked["count"],
            where=asked["where"],
            without=asked["like"],
            spaces=_SPACES[asked["space"]],
        )
        numbers = None
        if asked["like"] is not None and found.shared is not None and not asked["where"]:
            count = asked["count"]
            numbers = {
                "shared": found.shared,
                "count": count,
                "mean": self._collection.mean_shared(count),
                "chance": count * count / max(self._collection.size - 1, 1),
            }
        return self._rendered(asked, shown, found=found, numbers=numbers)

    def _rendered(self, asked, shown, **parts):
        def link(**changes):
            """The address of another question."""
            told = {**asked, **changes}
            kept = {
                key: value
                for key, value in told.items()
                if value not in ("", None, _DEFAULTS.get(key))
            }
            return "/?" + urllib.parse.urlencode(kept)

        return flask.render_template(
            "search.html",
            **{"found": None, "overview": None, "numbers": None, **parts},
            asked=asked,
            shown=shown,
            link=link,
            title=self._title,
            size=self._collection.size,
            counts=_COUNTS,
            has_model=self._collection.encoders is not None,
            has_both=self._collection.images is not None and self._collection.texts is not None,
            has_pictures=self._collection.source is not None,
        )


_DEFAULTS = {"count": _COUNTS[0], "space": "both"}


def _asked(given: Mapping[str, str]) -> dict[str, Any]:
    """What an address or a form asks, each value one of those that it can have."""
    like, count = given.get("like", ""), given.get("count", "")
    space = given.get("space", "both")
    if like and not re.fullmatch("[0-9]{1,12}", like):
        raise Refused(400, "like is the number of a row")
    return {
        "text": given.get("text", "").strip()[:_TEXT_LENGTH],
        "like": int(like) if like else None,
        "where": given.get("where", "").strip()[:_TEXT_LENGTH],
        "count": int(count) if count in map(str, _COUNTS) else _COUNTS[0],
        "space": space if space in _SPACES else "both",
    }
