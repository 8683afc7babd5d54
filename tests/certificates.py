"""Certificates for tests of TLS, signed by themselves."""

import datetime
import ipaddress
from pathlib import Path

import pytest


def self_signed(directory: Path, host: str | None = None) -> tuple[Path, Path]:
    """Files of a certificate for 127.0.0.1, or for the name alone, and of its key."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "rewards")])
    address = ipaddress.ip_address("127.0.0.1")
    called = x509.DNSName(host) if host else x509.IPAddress(address)
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([called]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(certificate.public_bytes(encoding))
    private = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "key.pem").write_bytes(key.private_bytes(encoding, *private))
    return directory / "cert.pem", directory / "key.pem"
