"""URLs of Redis: what may stand in one, and how it is shown."""

from urllib.parse import urlsplit


def url_fault(url: str) -> str | None:
    """What is wrong with a Redis URL, without repeating a password; None: nothing."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "is none, as redis://HOST:6379/0 would be: the port must be 0 to 65535"
    if not url.lower().startswith(f"{parts.scheme}://"):  # else it may be any text before a colon
        return "does not begin with redis://, rediss:// or unix://"
    if parts.scheme not in ("redis", "rediss", "unix"):
        return f"begins with {parts.scheme!r}; use redis://, rediss:// or unix://"
    if parts.password is not None or "password" in parts.query:
        return (
            "holds a password, which the resolved config and process lists would show; "
            "name where it is with password_env or password_file instead"
        )
    if parts.query or parts.fragment:
        return "has a query or fragment; what can be set has a setting of its own"
    database = parts.path.strip("/")
    if parts.scheme == "unix":
        return None if database else "has no path of a socket, as in unix:///run/redis.sock"
    if not parts.hostname or port == 0:
        return "names no host and port, as redis://HOST:6379/0 does"
    if database and not database.isdecimal():
        shown = repr(database) if database.isidentifier() else "behind its host"
        return f"has the database {shown}; it must be a number"
    return None


def shown_url(url: str) -> str:
    """A URL without whatever could be a password in it."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    user = f"{parts.username}@" if parts.username else ""
    return f"{parts.scheme}://{user}{host}{parts.path}"
