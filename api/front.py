"""What a request meets before the routes, in plain ASGI so that streams pass through untouched."""

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import Forbidden, reply

SAFE = ("GET", "HEAD", "OPTIONS")


class OwnPages:
    """Refuses what only a web page of somebody else asks for: there are no keys, and browsers carry any page's POST.

    Programs send neither Origin nor Sec-Fetch-Site. A page whose name its owner points here (DNS rebinding) is of this
    origin to the browser, so a name with a dot in it has to be one of ALLOWED_HOSTS.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 403, or pass the request on."""
        if scope["type"] == "http":
            allowed = scope["app"].state.service.settings.host_names
            refusal = _misnamed(Headers(scope=scope), allowed) or _foreign(scope["method"], Headers(scope=scope))
            if refusal:
                await reply(Forbidden(refusal))(scope, receive, send)
                return
        await self._app(scope, receive, send)


def _misnamed(headers: Headers, allowed: tuple[str, ...]) -> str | None:
    """Return why the Host is not one of this service's names, None where it may be."""
    host = headers.get("host", "")
    name = _name(host)
    if "." not in name or name.endswith(".localhost") or _is_address(name):
        return None
    if any(one in ("*", name) or (one.startswith("*.") and name.endswith(one[1:])) for one in allowed):
        return None
    return f"this service is not called {host[:100]!r}; name it in ALLOWED_HOSTS if it is"


def _name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return "not.a.host"


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _foreign(method: str, headers: Headers) -> str | None:
    """Return why another site's page may not ask for this, None where no such page does."""
    if method in SAFE:
        return None
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None:
        own = origin is None or origin.partition("://")[2].lower() == headers.get("host", "").lower()
    else:
        own = site in ("same-origin", "none")
    if own:
        return None
    return f"a page of {(origin or 'another site')[:100]} may not {method} here; only the service's own may"


class HeadAsGet:
    """Answers HEAD as GET without the body."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the head alone; the server then tells a stream that nobody listens."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def head(message: Message) -> None:
            if message["type"] == "http.response.start":
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        got: dict[str, Any] = {**scope, "method": "GET"}
        await self._app(got, receive, head)
