"""The Hugging Face hub: bundles pushed and pulled through huggingface_hub's own client, against a server on loopback
that speaks as much of the hub's protocol as these calls use. Small files go into the commit, as the hub asks."""

import base64
import hashlib
import json
import re
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
import torch

from mvar.model import Model, load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(BaseHTTPRequestHandler):
    """One repository, whose files live in the server."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, body, status=200, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        url = f"http://127.0.0.1:{self.server.server_port}/me/clothes"
        if self.path.endswith("/repos/create"):
            self.reply({"url": url, "name": "me/clothes"})
        elif "/preupload/" in self.path:
            names = [file["path"] for file in json.loads(body)["files"]]
            modes = [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]
            self.reply({"files": modes})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.reply({"success": True, "commitOid": COMMIT, "commitUrl": f"{url}/commit/{COMMIT}"})
        else:
            self.reply({"files": []} if "validate" in self.path else {})

    def do_GET(self):
        self.server.seen.append((self.command, self.path, self.headers.get("Authorization")))
        file = re.search(r"/resolve/[^/]+/(.+)$", self.path)
        if file and file[1] in self.server.files:
            data = self.server.files[file[1]]
            etag = hashlib.sha256(data).hexdigest()
            self.reply(data, ETag=f'"{etag}"', X_Repo_Commit=COMMIT)
        elif self.path.startswith("/api/models/me/clothes"):
            names = [{"rfilename": name} for name in self.server.files]
            tree = [{"type": "file", "path": n, "size": len(d), "oid": "0" * 40} for n, d in self.server.files.items()]
            self.reply(tree if "/tree/" in self.path else {"id": "me/clothes", "sha": COMMIT, "siblings": names})
        else:
            self.reply({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET


@pytest.fixture
def server():
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        server.files, server.seen = {}, []
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_saved_and_loaded_from_a_folder(bundle, tmp_path):
    model = load(bundle)
    model.save_pretrained(tmp_path / "clothes")
    card = (tmp_path / "clothes" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: mvar\n")
    assert "# clothes" in card
    again = Model.from_pretrained(tmp_path / "clothes")
    assert torch.equal(again.sample([0, 1]).pixels, model.sample([0, 1]).pixels)
    assert (again.classes, again.defaults) == (model.classes, model.defaults)
    half = Model.from_pretrained(tmp_path / "clothes", dtype="bfloat16")
    with pytest.raises(ValueError, match="load the model with dtype='float32' to save it exactly"):
        half.save_pretrained(tmp_path / "half")
    assert Model.from_pretrained("fashion-mnist").classes == load("fashion-mnist").classes


def test_pushed_and_pulled(bundle, server, tmp_path):
    """In a process of its own, as the client reads the hub's address when it is imported."""
    script = f"""
import torch
from mvar.model import Model, load
model = load({bundle!r})
print(model.push_to_hub("me/clothes", token="hf_secret"))
again = load("me/clothes")
assert torch.equal(again.sample([0, 1]).pixels, model.sample([0, 1]).pixels)
third = Model.from_pretrained("me/clothes", revision="main", token="hf_secret", dtype="bfloat16")
assert third.classes == ["cat", "dog"]
try:
    load("me/shoes")
except ValueError as error:
    print(error)
"""
    endpoint = f"http://127.0.0.1:{server.server_port}"
    environment = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_XET": "1", "PATH": "/usr/bin"}
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    assert COMMIT in run.stdout.splitlines()[0]
    assert "model = 'me/shoes': no local folder of this name, and not fetched" in run.stdout
    assert set(server.files) == {
        "config.json", "classes.json", "README.md", "tokenizer.safetensors", "generator.safetensors"
    }  # fmt: skip
    assert ("POST", "/api/repos/create", "Bearer hf_secret") in server.seen
    assert 'mvar.load("me/clothes")' in server.files["README.md"].decode()
