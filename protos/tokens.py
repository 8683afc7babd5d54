"""Bearer tokens: where they come from, when they end, and whether a caller's is one of them."""

import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

logger = logging.getLogger(__name__)

_SCHEME = "Bearer "


class TokenError(ValueError):
    """No token where one was named, or one that cannot be sent; the message does not repeat it."""


@dataclass(frozen=True)
class Token:
    """What a caller must send.

    Attributes:
      value: printable ASCII without spaces.
      expires: seconds since 1970 from which on it is refused; None: never.
    """

    value: str = field(repr=False)
    expires: float | None = None


def parse_tokens(text: str, where: str) -> tuple[Token, ...]:
    """The tokens of a text: one a line, `TOKEN` or `TOKEN 2027-01-31T00:00:00Z`, when it ends.

    Raises:
      TokenError: there is none, or a line is not so; `where` says whose it is.
    """
    tokens = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if not words[0].isascii() or not words[0].isprintable() or len(words) > 2:
            raise TokenError(
                f"{where}, line {number}: not a token in printable ASCII, alone or with the time "
                "at which it ends"
            )
        tokens.append(Token(words[0], _time(words[1], where, number) if words[1:] else None))
    if not tokens:
        raise TokenError(f"no token: {where} is not set, or empty")
    return tuple(tokens)


def _time(text: str, where: str, line: int) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        # It is not repeated: it may be a part of a token.
        raise TokenError(
            f"{where}, line {line}: after the token stands no time, such as 2027-01-31T00:00:00Z"
        ) from None
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


class TokenSource:
    """Tokens that are named by an environment variable or a file; a file may change meanwhile."""

    def __init__(self, env: str | None = None, file: Path | str | None = None) -> None:
        """Reads them.

        Raises:
          TokenError: both are named, or what is named holds none.
        """
        if env and file:
            raise TokenError(f"the token is named twice: the variable {env} and the file {file}")
        self._file = None if not file else Path(file).expanduser()
        self._version: tuple[int, ...] | None = None
        self._complaint = ""
        self._tokens: tuple[Token, ...] = ()
        if env:
            where = f"the environment variable {env}"
            self._tokens = parse_tokens(os.environ.get(env, ""), where)
        elif self._file is not None:
            self._tokens = self._read(self._file)

    def __bool__(self) -> bool:
        return bool(self._tokens)

    @classmethod
    def of(cls, text: str | None) -> "TokenSource":
        """Of a text itself; None: none."""
        source = cls()
        source._tokens = () if text is None else parse_tokens(text, "the token")
        return source

    def tokens(self) -> tuple[Token, ...]:
        """The tokens now. A file that became unreadable leaves those that were read last."""
        if self._file is not None:
            try:
                if _version_of(self._file) != self._version:
                    self._tokens = self._read(self._file)
            except (OSError, TokenError) as error:
                if str(error) != self._complaint:
                    logger.warning("tokens stay as they were: %s", error)
                self._complaint = str(error)
        return self._tokens

    def metadata(self) -> tuple[tuple[str, str], ...] | None:
        """What a call carries: the first token that has not ended; None where there is none.

        Where all have ended it is the first, so that the server says so.
        """
        tokens, now = self.tokens(), time.time()
        if not tokens:
            return None
        valid = (token for token in tokens if token.expires is None or token.expires > now)
        return (("authorization", _SCHEME + next(valid, tokens[0]).value),)

    def _read(self, file: Path) -> tuple[Token, ...]:
        where = f"the file {file}"
        try:
            version, text = _version_of(file), file.read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise TokenError(f"no token: {where} cannot be read: {error}") from error
        tokens = parse_tokens(text, where)
        self._version = version
        return tokens


def _version_of(file: Path) -> tuple[int, ...]:
    """Changes with the file. Its time alone may not: a copy keeps it, quick writes share it."""
    status = file.stat()
    return status.st_mtime_ns, status.st_size, status.st_ino


def refusal(
    given: str | bytes, tokens: Sequence[Token], clock: Callable[[], float] = time.time
) -> str | None:
    """Why the `authorization` that a caller sent is refused; None: it is not.

    Every token is compared, each in constant time, so that the time tells nothing of them.
    """
    octets = given.encode() if isinstance(given, str) else given
    same = [hmac.compare_digest(octets, (_SCHEME + token.value).encode()) for token in tokens]
    ends = [token.expires for token, match in zip(tokens, same, strict=True) if match]
    if not ends:
        return "this server wants its bearer token: authorization: Bearer TOKEN"
    if all(end is not None and end <= clock() for end in ends):
        return "the bearer token has expired: ask for another"
    return None
