"""Generates the Python code of the wire contract: `python -m protos.generate`.

The code is committed, so that nobody needs the compiler to run. It must come from grpcio-tools
1.62.3: newer ones write code that refuses the protobuf versions that Ray installs; this one's code
ran on protobuf 4.25 to 7.36.
"""

import importlib.metadata
import sys
from pathlib import Path

PROTOS = Path(__file__).resolve().parent
SOURCES = ("trajectory.proto", "reward.proto", "replay.proto", "weights.proto")
COMPILER = "1.62.3"


def generate(destination: Path) -> list[Path]:
    """Writes `protos/*_pb2.py` and `.pyi` below `destination` and returns their paths.

    Raises:
      RuntimeError: grpcio-tools is missing or of another version, or protoc reports errors.
    """
    try:
        version = importlib.metadata.version("grpcio-tools")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    if version != COMPILER:
        raise RuntimeError(
            f"generating needs grpcio-tools {COMPILER}, found {version}: "
            f"pip install grpcio-tools=={COMPILER}"
        )
    from grpc_tools import protoc  # type: ignore[import-untyped]  # a development dependency

    status = protoc.main(
        [
            "protoc",
            f"--proto_path={PROTOS.parent}",
            f"--python_out={destination}",
            f"--pyi_out={destination}",
            *(str(PROTOS / source) for source in SOURCES),
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status} on {', '.join(SOURCES)}")
    stems = [destination / "protos" / (Path(source).stem + "_pb2") for source in SOURCES]
    for stub in (stem.with_suffix(".pyi") for stem in stems):
        stub.write_text('# mypy: disable-error-code="type-arg"\n' + stub.read_text())
    return [stem.with_suffix(end) for stem in stems for end in (".py", ".pyi")]


if __name__ == "__main__":
    for path in generate(PROTOS.parent):
        print(path, file=sys.stderr)
