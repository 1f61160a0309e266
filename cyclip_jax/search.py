"""Look through the embeddings of a data set, in a browser on this machine.

python -m cyclip_jax.search pool

The folder is one that python -m cyclip_jax.embed wrote. Type a sentence, drop a picture, or follow
"more like this". The two spaces stand side by side: pictures that are alike, and captions that are
alike. --static=gallery.html writes one file that needs no server instead.
"""

import importlib.util
import secrets
import socket
from collections.abc import Sequence
from typing import Any

from absl import flags

from cyclip_jax.errors import UserError
from cyclip_jax.runtime import command

_POSITIONAL = "DIR: a folder of embeddings"
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


def define_flags(values: flags.FlagValues) -> None:
    """Defines the command's flags."""
    for name, default, meaning in (
        ("checkpoint", None, "The model that made the embeddings, if it has moved."),
        ("data", None, "The data, if they have moved."),
        ("faiss", None, "An index of faiss, such as HNSW32; by default every row is compared."),
        ("host", "127.0.0.1", "Address to listen at; one that others reach asks for a token."),
        ("static", None, "HTML file to write in place of a server."),
    ):
        flags.DEFINE_string(name, default, meaning, flag_values=values)
    flags.DEFINE_integer(
        "port",
        8766,
        "Port to listen at; 0 takes a free one.",
        lower_bound=0,
        upper_bound=65535,
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "allowed_host",
        [],
        "A further name under which browsers may reach the server; it can be repeated.",
        flag_values=values,
    )
    flags.DEFINE_multi_string(
        "text", [], "A sentence whose answers --static has; it can be repeated.", flag_values=values
    )
    flags.DEFINE_integer(
        "pictures",
        24,
        "Of so many pictures --static has the neighbours.",
        lower_bound=0,
        upper_bound=1000,
        flag_values=values,
    )


def starting(values: Any, *folders: str) -> str:
    """What is begun, in words."""
    del values
    return f"search in {', '.join(folders)}"


def main(values: Any, *folders: str) -> None:
    """Opens the collection, and serves or writes the page."""
    if len(folders) != 1:
        raise UserError(f"there are {len(folders)} folders; name one")
    is_static = values.static is not None
    if values.text and not is_static:
        raise UserError("--text is for --static; on the page it is typed")
    _check_installed(
        "pyarrow", "jinja2", *(() if is_static else ("flask", "threadpoolctl", "waitress"))
    )
    from cyclip_jax.embeddings.opening import open_collection
    from cyclip_jax.files import absolute

    listening = None if is_static else _listen(values.host, values.port)
    print("opening the model and the data …", flush=True)
    collection = open_collection(
        folders[0], checkpoint=values.checkpoint, data=values.data, faiss=values.faiss
    )
    title = absolute(folders[0]).name
    if listening is None:
        _write(values, collection, title)
    else:
        _serve(values, collection, title, listening)


def _write(values, collection, title):
    from cyclip_jax.embeddings.static_page import static_page
    from cyclip_jax.files import absolute, write_atomically

    path = absolute(values.static, "--static")
    page = static_page(collection, title=title, texts=values.text, pictures=values.pictures)
    write_atomically(path, page)
    print(f"the gallery is {path}")


def _check_installed(*needed):
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(
            f"{', '.join(missing)} is not installed; run pip install 'cyclip_jax[search]'"
        )


def _listen(host, port):
    """A socket that listens; nothing expensive is begun where the port is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        raise UserError(
            f"{host}:{port} cannot be listened at ({error.strerror or error}); choose another "
            "--port, or --port=0 for a free one"
        ) from error
    return listening


def _serve(values, collection, title, listening):
    server, address = create_server(
        collection,
        listening,
        title=title,
        host=values.host,
        further_hosts=values.allowed_host,
    )
    print(f"{collection.size:,} examples: {address}  (Ctrl-C ends)", flush=True)
    server.run()


def create_server(
    collection: Any,
    listening: socket.socket,
    *,
    title: str,
    host: str = "127.0.0.1",
    further_hosts: Sequence[str] = (),
) -> tuple[Any, str]:
    """A server of the page.

    Args:
      collection: a Collection.
      listening: the socket, bound.
      title: of the page.
      host: what it is bound to. Unless only this machine reaches that, a token is asked for.
      further_hosts: other names by which browsers may call it.

    Returns:
      (waitress's server, the address to open).
    """
    import threadpoolctl
    import waitress.server

    from cyclip_jax.embeddings.site import UPLOAD_BYTES, create_site

    port = listening.getsockname()[1]
    is_open = host not in _LOOPBACK
    token = secrets.token_urlsafe(32) if is_open else None
    names = [*_LOOPBACK, *further_hosts]
    if is_open:
        names += [host, socket.gethostname(), socket.getfqdn()]
    names = [f"[{name}]" if ":" in name else name.lower() for name in names]
    hosts = {f"{name}:{port}" for name in names} | (set(names) if port == 80 else set())
    site = create_site(collection, title=title, hosts=frozenset(hosts), token=token)
    collection.mean_shared(1)  # so that no answer waits for it
    # The threads of NumPy's products wait by turning in circles, and take the cores from the model.
    threadpoolctl.threadpool_limits(1, "blas")
    server = waitress.server.create_server(
        site,
        sockets=[listening],
        threads=4,
        ident=None,
        max_request_body_size=UPLOAD_BYTES + (1 << 16),
        max_request_header_size=1 << 14,
        connection_limit=100,
        channel_timeout=30,
    )
    shown = socket.gethostname() if is_open else "127.0.0.1"
    return server, f"http://{shown}:{port}/" + (f"?token={token}" if token else "")


if __name__ == "__main__":
    command.run(main, define_flags, doc=__doc__, positional=_POSITIONAL, starting=starting)
