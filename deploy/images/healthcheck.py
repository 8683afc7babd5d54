"""Whether what a container runs is well, for Docker's HEALTHCHECK: exit code 0 or 1.

python -m deploy.images.healthcheck raylet [HOST:PORT]
python -m deploy.images.healthcheck server [HOST:PORT]

A server with TLS is asked by what the environment names, since an image's HEALTHCHECK has no
options of its container's: files that the container has, in PEM.

REWARDTUNE_HEALTH_CA           certificates to check the server's against; this turns TLS on
REWARDTUNE_HEALTH_NAME         the host that the server's certificate is for, if not 127.0.0.1
REWARDTUNE_HEALTH_CERTIFICATE  of the check itself, for a server with --tls-client-ca
REWARDTUNE_HEALTH_KEY          its key
"""

import os
import sys
import urllib.request

SECONDS = 5.0
# The dashboard agent of every Ray node; it needs no token for this path.
RAYLET = "127.0.0.1:52365"
SERVER = "127.0.0.1:50061"
VARIABLE = "REWARDTUNE_HEALTH_"
TLS = ("CA", "NAME", "CERTIFICATE", "KEY")


def raylet_fault(address: str = RAYLET) -> str | None:
    """What is wrong with the Ray node here; None: it is well."""
    try:
        with urllib.request.urlopen(
            f"http://{address}/api/local_raylet_healthz", timeout=SECONDS
        ) as answer:
            text = answer.read().decode(errors="replace").strip()
    except OSError as error:
        return f"no raylet answers at {address}: {error}"
    return None if text == "success" else f"the raylet at {address} says {text!r}"


def server_fault(address: str = SERVER) -> str | None:
    """What is wrong with the gRPC server here; None: it is well."""
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from protos.edge import EdgeError, channel_credentials

    ca, name, certificate, key = (os.environ.get(f"{VARIABLE}{what}") for what in TLS)
    try:
        credentials = channel_credentials(False, ca, certificate, key)
    except EdgeError as error:
        return str(error)
    options = [("grpc.ssl_target_name_override", name)] if name else []
    with (
        grpc.insecure_channel(address)
        if credentials is None
        else grpc.secure_channel(address, credentials, options)
    ) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=SECONDS
            )
        except grpc.RpcError as error:
            return f"no server answers at {address}: {error.code().name}"
    status = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
    return None if status == "SERVING" else f"the server at {address} is {status}"


def main(arguments: list[str]) -> int:
    """Prints a fault, if there is one."""
    checks = {"raylet": raylet_fault, "server": server_fault}
    if not arguments or arguments[0] not in checks:
        print(f"usage: healthcheck {'|'.join(checks)} [HOST:PORT], not {arguments}")
        return 1
    fault = checks[arguments[0]](*arguments[1:2])
    if fault is not None:
        print(fault)
    return 1 if fault else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
