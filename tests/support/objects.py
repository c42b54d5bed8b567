"""An object store on loopback: what gcsfs, Orbax and tensorstore ask of Google's.

Objects live in a dict of this process, so a run in another process can be killed and
started again. Names have no folders, a write replaces a whole object, nothing can be
appended, and a write may be conditional on the object's generation: what a run
directory in a bucket has to live with.
"""

import base64
import contextlib
import datetime
import email
import http.server
import itertools
import json
import re
import threading
import urllib.parse
import zlib
from collections.abc import Iterator

BUCKET = "bucket"


class Objects:
    """The objects of the one bucket, by name."""

    def __init__(self):
        self.data: dict[str, bytes] = {}
        self.made: dict[str, tuple[int, str]] = {}  # generation, time
        self.uploads: dict[str, tuple[str, bytes]] = {}  # resumable ones: name, so far
        self.next = itertools.count(1000)
        self.lock = threading.Lock()
        self.writes: list[str] = []
        self.is_closed = False  # to everybody

    def put(self, name: str, data: bytes) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        self.data[name], self.made[name] = data, (next(self.next), now)
        self.writes.append(name)

    def described(self, name: str) -> dict:
        generation, time = self.made[name]
        crc = zlib.crc32(self.data[name]).to_bytes(4, "big")  # opaque to the clients
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET,
            "size": str(len(self.data[name])), "generation": str(generation),
            "metageneration": "1", "updated": time, "timeCreated": time,
            "contentType": "application/octet-stream", "storageClass": "STANDARD",
            "etag": base64.b64encode(crc).decode(),
        }  # fmt: skip

    def listed(self, query: dict[str, str]) -> dict:
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        first = max(query.get("startOffset", ""), query.get("pageToken", ""))
        items, prefixes = [], set()
        for name in sorted(self.data):
            end = query.get("endOffset")
            if not name.startswith(prefix) or name < first or (end and name >= end):
                continue
            inner, found, _ = name[len(prefix) :].partition(delimiter or "\0")
            if found and delimiter:
                prefixes.add(prefix + inner + delimiter)
            elif len(items) == int(query.get("maxResults", 1000)):
                return _page(items, prefixes) | {"nextPageToken": name}
            else:
                items.append(self.described(name))
        return _page(items, prefixes)


def _page(items, prefixes):
    return {"kind": "storage#objects", "items": items, "prefixes": sorted(prefixes)}


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: else 40 ms an answer
    disable_nagle_algorithm = True
    objects: Objects

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # tensorstore hangs up when it likes
            super().handle()

    def do_any(self) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        names = re.fullmatch(
            r"(/upload|/download)?(?:/resumable)?/storage/v1/b/([^/]+)"
            r"(?:/o(?:/([^/]+))?(?:/(?:rewriteTo/b/[^/]+|moveTo)/o/([^/]+))?)?",
            url.path,
        )
        missing = {"error": {"code": 404, "message": "Not Found"}}
        if self.objects.is_closed:
            return self.answer(403, {"error": {"code": 403, "message": "Forbidden"}})
        if not names or names[2] != BUCKET:
            return self.answer(404, missing)
        source, target = (n and urllib.parse.unquote(n) for n in names.group(3, 4))
        with self.objects.lock:
            if names[1] == "/upload":
                return self.upload(query, body)
            if self.command == "GET" and source is None:
                if url.path.endswith("/o"):
                    return self.answer(200, self.objects.listed(query))
                return self.answer(200, {"kind": "storage#bucket", "name": BUCKET})
            if source not in self.objects.data:
                return self.answer(404, missing)
            if target is not None:
                self.objects.put(target, self.objects.data[source])
                if "/moveTo/" in url.path:
                    del self.objects.data[source]
                new = self.objects.described(target)
                return self.answer(200, {**new, "done": True, "resource": new})
            if not self.allowed(source, query):
                return None
            if self.command == "DELETE":
                del self.objects.data[source]
                return self.answer(204)
            if names[1] or query.get("alt") == "media":
                return self.media(source)
            return self.answer(200, self.objects.described(source))

    do_GET = do_POST = do_PUT = do_DELETE = do_any  # noqa: N815

    def allowed(self, name: str, query: dict[str, str]) -> bool:
        known = self.objects.made[name][0] if name in self.objects.data else 0
        if int(query.get("ifGenerationMatch", known)) != known:
            self.answer(412, {"error": {"code": 412, "message": "Precondition Failed"}})
            return False
        if query.get("ifGenerationNotMatch") == str(known):
            self.answer(304)
            return False
        return True

    def upload(self, query: dict[str, str], body: bytes) -> None:
        kind = query.get("uploadType", "resumable")
        if kind == "multipart":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.message_from_bytes(head + body).get_payload()
            name = json.loads(parts[0].get_payload(decode=True))["name"]
            # As bytes: the parser of mail would change the ends of lines.
            kind = self.headers["Content-Type"]
            boundary = re.search(r"boundary=[\"']?([^\"';]+)", kind)
            last = body.split(b"--" + boundary[1].encode())[2]
            body = re.split(rb"\r?\n\r?\n", last, maxsplit=1)[1]
            body = re.sub(rb"\r?\n$", b"", body)
        elif kind == "media":
            name = query["name"]
        elif "upload_id" not in query:
            name = query.get("name") or json.loads(body)["name"]
            key = str(next(self.objects.next))
            self.objects.uploads[key] = (name, b"")
            place = f"http://{self.headers['Host']}{self.path}&upload_id={key}"
            return self.answer(200, {}, {"Location": place})
        else:
            name, before = self.objects.uploads[query["upload_id"]]
            body = before + body
            if self.headers.get("Content-Range", "").endswith("/*"):
                self.objects.uploads[query["upload_id"]] = (name, body)
                return self.answer(308, None, {"Range": f"bytes=0-{len(body) - 1}"})
        if self.allowed(name, query):
            self.objects.put(name, body)
            self.answer(200, self.objects.described(name))
        return None

    def media(self, name: str) -> None:
        data, code, headers = self.objects.data[name], 200, {}
        headers["x-goog-generation"] = str(self.objects.made[name][0])
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            size = len(data)
            start = int(wanted[1]) if wanted[1] else size - int(wanted[2])
            end = int(wanted[2]) if wanted[1] and wanted[2] else size - 1
            if start >= size:
                return self.answer(416, None, {"Content-Range": f"bytes */{size}"})
            data, code = data[start : end + 1], 206
            span = f"bytes {start}-{start + len(data) - 1}/{size}"
            headers["Content-Range"] = span
        return self.answer(code, data, headers)

    def answer(self, code, content=None, headers=None) -> None:
        data = content if isinstance(content, bytes) else b""
        if isinstance(content, dict):
            data = json.dumps(content).encode()
        self.send_response(code)
        kind = "application/json" if isinstance(content, dict) else "application/x"
        for name, value in {"Content-Type": kind, **(headers or {})}.items():
            self.send_header(name, value)
        if code not in (204, 304):
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


@contextlib.contextmanager
def serve() -> Iterator[tuple[Objects, dict[str, str]]]:
    """(the objects, the environment in which gs://bucket is this one)."""
    objects = Objects()
    handler = type("Handler", (_Handler,), {"objects": objects})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    try:
        environment = {
            "STORAGE_EMULATOR_HOST": address,
            "TENSORSTORE_GCS_HTTP_URL": address,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",
            "GOOGLE_CLOUD_PROJECT": "none",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # would ask by gRPC
            "GCE_METADATA_HOST": address.removeprefix("http://"),  # says 404 at once
            "GCE_METADATA_IP": address.removeprefix("http://"),
        }
        yield objects, environment
    finally:
        server.shutdown()
        server.server_close()
