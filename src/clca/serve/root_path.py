"""An application that a proxy shows below a path of its own, such as https://plants.example/cultivars/."""

from starlette.types import ASGIApp, Receive, Scope, Send


class RootPath:
    """ASGI middleware: takes requests with the path before theirs, and without it, as proxies hand them on either way.

    Args:
        app: What is below the path.
        root_path: "/cultivars", without a slash at its end.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self.app, self._root = app, root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] in ("http", "websocket"):
            path = scope["path"]
            if path != self._root and not path.startswith(f"{self._root}/"):
                path = self._root + path
            scope = {**scope, "root_path": self._root, "path": path}
        await self.app(scope, receive, send)


def path_below(scope: Scope) -> str:
    """The path of a request below whatever the application is mounted at, as its router reads it."""
    root, path = scope.get("root_path", ""), scope["path"]
    if root and (path == root or path.startswith(f"{root}/")):
        path = path[len(root) :]
    return path or "/"
