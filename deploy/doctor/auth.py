"""How this machine would let itself in to a Ray cluster: its mode and its token."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.doctor.finding import Finding, fail, ok, warn

MODE = "RAY_AUTH_MODE"
TOKEN, TOKEN_PATH = "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"  # names of variables


@dataclass(frozen=True)
class Access:
    """What Ray will use.

    Attributes:
      mode: `token`, `disabled`, or empty: not said.
      source: where the token is from; empty where there is none.
      token: it; never shown.
      fault: why what is named holds none.
    """

    mode: str
    source: str = ""
    token: str = ""
    fault: str = ""

    def __repr__(self) -> str:
        return f"Access(mode={self.mode!r}, source={self.source!r})"

    @property
    def headers(self) -> dict[str, str]:
        """For HTTP requests to the cluster."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def find_access(environment: Mapping[str, str], home: Path) -> Access:
    """What Ray would find, in its order: the variable, the file of a variable, the home's file."""
    mode = environment.get(MODE, "").lower()
    if token := environment.get(TOKEN, "").strip():
        return Access(mode, f"variable {TOKEN}", token)
    named = environment.get(TOKEN_PATH)
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        token = path.read_text().strip()
    except OSError as error:
        fault = f"{TOKEN_PATH} is {named}: {error.strerror}" if named else ""
        return Access(mode, fault=fault)
    if not token:
        return Access(mode, fault=f"{path} is empty")
    return Access(mode, str(path), token)


def check_auth(access: Access, address: str | None) -> Finding:
    """Whether a cluster with token authentication, Ray's default, would let this machine in.

    Args:
      access: of this machine.
      address: of the cluster; None: a run starts one here, with a token of its own.
    """
    get = f"copy the cluster's token (there: `ray get-auth-token`) to a file, and set {TOKEN_PATH}"
    if access.fault:
        return fail("auth", access.fault, get)
    if access.mode not in ("", "token", "disabled"):
        return fail(
            "auth", f"{MODE} is {access.mode!r}; Ray knows token and disabled", f"{MODE}=token"
        )
    if access.mode == "disabled":
        return warn(
            "auth",
            f"{MODE} is disabled: who reaches the cluster can run code in it",
            f"unset it, or set {MODE}=token on every node and here",
        )
    if address is None:
        return ok("auth", "a run starts a cluster here, with a token of its own")
    if access.mode == "token" and not access.token:
        return fail("auth", f"{MODE} is token, but there is none", get)
    if not access.mode and not access.token:  # with a token, Ray uses it
        return warn(
            "auth",
            f"no token, and {MODE} is not set: a cluster with token authentication refuses that",
            f"{get}, and {MODE}=token",
        )
    return ok("auth", f"token from {access.source}")
