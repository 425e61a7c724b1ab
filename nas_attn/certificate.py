"""A certificate for one local cluster: its processes know each other by it, and nobody else gets as far as a first call.

A token alone is not enough. Ray 2.60 looks into a call of its resource syncer before it looks for the token, and ends the head where the
call is not as it expects: one packet of a stranger stops a search. With mutual TLS a stranger's connection ends in the handshake.
"""

import datetime
import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

LOOPBACK = ("127.0.0.1", "::1")
_DAY = datetime.timedelta(days=1)
_LIFE = 3650 * _DAY


def issue(folder: Path, addresses: Iterable[str]) -> dict[str, str]:
    """Writes a key (0600) and a certificate that vouches for itself into a private folder; gives the variables that make Ray use them.

    Clients check that the certificate names what they call, so `addresses` are all IP addresses at which the cluster calls itself.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _sign(key, sorted({*LOOPBACK, *addresses}))
    secret = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    files = {"RAY_TLS_SERVER_KEY": ("key.pem", secret), "RAY_TLS_SERVER_CERT": ("cert.pem", _pem(certificate))}
    for name, content in files.values():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
    paths = {variable: str(folder / name) for variable, (name, _) in files.items()}
    return {"RAY_USE_TLS": "1", **paths, "RAY_TLS_CA_CERT": paths["RAY_TLS_SERVER_CERT"]}


def _sign(key: ec.EllipticCurvePrivateKey, addresses: Iterable[str]) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nas-attn")])
    names = [x509.DNSName("localhost"), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - _DAY).not_valid_after(now + _LIFE)
    builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(key, hashes.SHA256())


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)
