"""A server of the page for its tests, in a process of its own: python page_server.py PORT BUNDLE KEY."""

import json
import socket
import subprocess
import sys
import urllib.request

import uvicorn

from mvar.web.api.app import create_app
from mvar.web.api.security import LOOPBACK, Options
from mvar.web.service import Limits, Service, Source

MOST_WAITING = 8  # images: fewer than the page can ask for


class Server:
    """A server in a process of its own."""

    def __init__(self, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{port}/"
        self.process = subprocess.Popen([sys.executable, __file__, str(port), *arguments])

    def under_way(self):
        with urllib.request.urlopen(f"{self.address}under-way") as answer:
            return json.load(answer)


def main(port, bundle, key):
    sources = [Source(name="tiny", path=bundle), Source(name="twin", path=bundle)]
    service = Service(sources, Limits(waiting=MOST_WAITING))
    app = create_app(service, Options(api_key=key, hosts=LOOPBACK), page=True)

    @app.get("/under-way")
    def under_way():
        return {
            "requests": sum(host.waiting for host in service.hosts.values()),
            "torch": "torch" in sys.modules,
            "worker": service.hosts["tiny"].pid,
        }

    uvicorn.run(app, port=int(port), log_level="error")


if __name__ == "__main__":
    main(*sys.argv[1:])
