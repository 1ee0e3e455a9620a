"""A proxy that shows a server of this machine below a path, as nginx does with `location /cultivars/`."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit


@contextmanager
def proxy(upstream: str, root: str, strips: bool = True) -> Iterator[str]:
    """Its address, with the path; `strips` says whether the server sees the path as well."""
    target = urlsplit(upstream).netloc

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self.path.startswith(f"{root}/"):
                self.send_error(404)
                return
            # Gradio asks for its stream for as long as the page is open.
            connection = http.client.HTTPConnection(target, timeout=120)
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "connection")
            }
            headers |= {"X-Forwarded-Host": self.headers["Host"], "X-Forwarded-Proto": "http"}
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                connection.request(self.command, self.path.removeprefix(root if strips else ""), body, headers)
                answer = connection.getresponse()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "date"):
                        self.send_header(name, value)
                self.end_headers()
                while piece := answer.read1(65536):
                    self.wfile.write(piece)
            except OSError:  # either of the two has gone
                pass
            finally:
                connection.close()

        do_POST = do_HEAD = do_GET

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}{root}/"
    finally:
        server.shutdown()
        server.socket.close()  # `server_close` would wait for open pages
        thread.join(30)
