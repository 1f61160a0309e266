"""A gallery of a collection in one HTML file, without a script and without a server."""

import base64
from collections.abc import Sequence

import jinja2

from cyclip_jax.embeddings.collection import Collection, Found
from cyclip_jax.embeddings.pages import PAGES, style_sheet
from cyclip_jax.errors import UserError

_HITS = 6  # of a space, for each picture or sentence


def static_page(
    collection: Collection, *, title: str, texts: Sequence[str] = (), pictures: int = 24
) -> str:
    """The page: what fits each sentence, and the neighbours of pictures in both spaces.

    Args:
      collection: what is shown.
      title: of the page.
      texts: sentences.
      pictures: of so many, from all over the collection, the neighbours are shown.

    Raises:
      UserError: there are sentences and no model.
    """
    if texts and collection.encoders is None:
        raise UserError("there is no model to embed --text; give --checkpoint")
    found: dict[str, Found] = {
        text: collection.find(collection.of_text(text), _HITS) for text in texts
    }
    rows = collection.spread(pictures) if pictures else []
    neighbours = {row: collection.find(collection.of_row(row), _HITS, without=row) for row in rows}
    shown = set(rows)
    for one in (*found.values(), *neighbours.values()):
        shown |= {hit.row for hits in (one.images, one.texts) for hit in hits or ()}
    thumbnails = {row: collection.thumbnail(row) for row in sorted(shown)}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template("static.html").render(
        title=title,
        style=style_sheet(),
        size=collection.size,
        thumbnails={
            row: base64.b64encode(picture).decode()
            for row, picture in thumbnails.items()
            if picture is not None
        },
        texts=found,
        neighbours={row: (collection.plain(row), one) for row, one in neighbours.items()},
        hits=_HITS,
        mean=collection.mean_shared(_HITS),
        chance=_HITS * _HITS / max(collection.size - 1, 1),
    )
