"""A stand-in of the Hugging Face Hub on 127.0.0.1, as far as huggingface_hub 2.4 asks it.

It keeps repositories with commits, small files in git and large ones by Git LFS. It does not speak
xet, which $HF_HUB_DISABLE_XET turns off. All bytes that it is sent are kept, for tests of what
leaves a machine.
"""

import base64
import contextlib
import dataclasses
import hashlib
import http.server
import importlib
import json
import threading
import urllib.parse

import pytest

TOKEN = "hf_" + "q7Zt" * 8  # of somebody who may write below "anna" and "lab"
READS = "hf_" + "r3Ad" * 8  # of somebody who may only read
OWNED = ("anna", "lab")
_LFS = (".safetensors", ".pt", ".bin", ".model", ".gz", ".jpg", ".onnx")


@dataclasses.dataclass
class Repository:
    """Commits {sha: {file: bytes}}, and {branch or tag: sha}."""

    private: bool = True
    gated: bool = False
    commits: dict = dataclasses.field(default_factory=dict)
    branches: dict = dataclasses.field(default_factory=dict)

    def commit(self, files, branch="main"):
        """A new commit with these files besides those that the branch has."""
        before = self.commits.get(self.branches.get(branch), {".gitattributes": b""})
        made = before | files
        digest = hashlib.sha1(f"{len(self.commits)}".encode())
        for name in sorted(made):
            digest.update(name.encode() + made[name])
        sha = digest.hexdigest()
        self.commits[sha], self.branches[branch] = made, sha
        return sha

    def sha_of(self, revision):
        return revision if revision in self.commits else self.branches.get(revision)


class Hub(http.server.ThreadingHTTPServer):
    """The stand-in.

    Attributes:
      repositories: {"user/name": Repository}.
      requests: ["METHOD path"] in the order in which they came.
      received: everything that was sent, but the header with the token.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories, self.requests, self.received, self.stored = {}, [], b"", {}

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def add(self, name, files, *, private=False, gated=False):
        """A repository with one commit."""
        self.repositories[name] = Repository(private=private, gated=gated)
        self.repositories[name].commit(files)
        return self.repositories[name]

    def fetched(self):
        """Names of the files that were asked for."""
        paths = [request.split()[1] for request in self.requests]
        return {path.rpartition("/")[2] for path in paths if "/resolve/" in path}


class _Refused(Exception):
    """A status, and what huggingface_hub is told by headers."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format, *args):
        del format, args

    def _answer(self):
        url = urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(url.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            body = self._chunks()
        self.server.requests.append(f"{self.command} {path}")
        told = {k: v for k, v in self.headers.items() if k.lower() != "authorization"}
        self.server.received += self.path.encode() + json.dumps(told).encode() + body
        for line in body.splitlines():  # what a commit has in base64
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self.server.received += base64.b64decode(json.loads(line)["value"]["content"])
        try:
            status, headers, content = self._routed(path, body)
        except _Refused as refused:
            status, code = refused.args
            headers, content = {"X-Error-Code": code, "X-Error-Message": code}, b"{}"
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = _answer

    def _chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _routed(self, path, body):
        if path.startswith("/stored/"):
            return self._storage(path.removeprefix("/stored/"), body)
        if path == "/api/repos/create":
            return self._created(json.loads(body))
        if path == "/api/validate-yaml":
            return _json({})
        if path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        if path.startswith("/api/models/"):
            user, name, *rest = path.removeprefix("/api/models/").split("/", 3)
            repository = self._repository(f"{user}/{name}")
            kind, revision = rest if len(rest) == 2 else ("revision", "main")
            if kind in ("preupload", "commit"):
                self._check_writer(user)
                if kind == "preupload":
                    return self._preupload(body)
                return self._committed(f"{user}/{name}", repository, body)
            return self._listed(f"{user}/{name}", repository, kind, revision.partition("/")[0])
        user, name, _, revision, file = path[1:].split("/", 4)
        return self._file(self._repository(f"{user}/{name}"), revision, file)

    def _token(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token not in ("", TOKEN, READS):
            raise _Refused(401, "Invalid credentials in Authorization header")
        return token

    def _check_writer(self, user):
        if self._token() != TOKEN or user not in OWNED:
            raise _Refused(403, "Forbidden")

    def _repository(self, name):
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._token()):
            raise _Refused(404 if self._token() else 401, "RepoNotFound")
        return repository

    def _listed(self, name, repository, kind, revision):
        sha = repository.sha_of(revision)
        if sha is None:
            raise _Refused(404, "RevisionNotFound")
        files = repository.commits[sha]
        if kind == "revision":
            siblings = [{"rfilename": file} for file in files]
            return _json(
                {"id": name, "private": repository.private, "sha": sha, "siblings": siblings}
            )
        if repository.gated:
            raise _Refused(403, "GatedRepo")
        return _json([_entry(file, content) for file, content in files.items()])

    def _file(self, repository, revision, file):
        if repository.gated:
            raise _Refused(403, "GatedRepo")
        sha = repository.sha_of(revision)
        content = repository.commits.get(sha, {}).get(file)
        if content is None:
            raise _Refused(404, "EntryNotFound")
        entry = _entry(file, content)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{entry["oid"]}"'}
        if "lfs" not in entry:
            return 200, headers, content
        oid = entry["lfs"]["oid"]
        self.server.stored[oid] = content
        headers |= {"X-Linked-Etag": f'"{oid}"', "X-Linked-Size": str(len(content))}
        # As on the real one, storage is another host, which is not given the token.
        storage = self.server.endpoint.replace("127.0.0.1", "localhost")
        return 302, {**headers, "Location": f"{storage}/stored/{oid}"}, b""

    def _created(self, told):
        user = told["organization"] or "anna"
        self._check_writer(user)
        name = f"{user}/{told['name']}"
        repository = Repository(private=told.get("visibility") == "private")
        repository.commit({})
        self.server.repositories[name] = repository
        return _json({"url": f"{self.server.endpoint}/{name}", "name": name})

    def _preupload(self, body):
        files = [
            {"path": path, "uploadMode": _mode(path), "shouldIgnore": False}
            for path in (file["path"] for file in json.loads(body)["files"])
        ]
        return _json({"files": files})

    def _batch(self, told):
        url = f"{self.server.endpoint}/stored/"
        objects = [
            {**one, "actions": {"upload": {"href": url + one["oid"]}}} for one in told["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def _storage(self, oid, body):
        assert "Authorization" not in self.headers
        if self.command == "PUT":
            assert hashlib.sha256(body).hexdigest() == oid
            self.server.stored[oid] = body
        return 200, {"ETag": f'"{oid}"'}, b"" if self.command == "PUT" else self.server.stored[oid]

    def _committed(self, name, repository, body):
        files = {}
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.stored[value["oid"]]
        sha = repository.commit(files)
        url = f"{self.server.endpoint}/{name}/commit/{sha}"
        return _json({"commitUrl": url, "commitOid": sha})


def _mode(path):
    return "lfs" if path.endswith(_LFS) else "regular"


def _entry(path, content):
    """A file as the listing of a tree has it."""
    oid = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    entry = {"type": "file", "path": path, "size": len(content), "oid": oid}
    if _mode(path) == "lfs":
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
    return entry


def _json(content):
    return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()


@pytest.fixture
def hub(monkeypatch, tmp_path_factory):
    """A stand-in that huggingface_hub takes for the Hub, with an empty cache and Anna's token."""
    server = Hub()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    use_hub(monkeypatch, server, tmp_path_factory.mktemp("hf"))
    yield server
    server.shutdown()
    server.server_close()
    monkeypatch.undo()
    _reload()


def use_hub(monkeypatch, server, home, **variables):
    """Sets the environment variables of huggingface_hub, which it reads when it is imported."""
    wanted = {
        "HF_ENDPOINT": server.endpoint,
        "HF_HOME": str(home),
        "HF_TOKEN": TOKEN,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **variables,
    }
    for name, value in wanted.items():
        monkeypatch.setenv(name, value)
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    _reload()


def _reload():
    """Lets huggingface_hub, and what this process knows of commits, begin anew."""
    from cyclip_jax.interop import hub

    importlib.reload(importlib.import_module("huggingface_hub.constants"))
    for known in (hub._commit, hub._fetched):
        known.cache_clear()
