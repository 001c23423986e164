"""A private certificate authority and one server certificate, made by the openssl command."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

CONFIG = """
[req]
distinguished_name = nobody
prompt = no
[nobody]
CN = geventpool tests
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = DNS:localhost
"""


@dataclass(frozen=True)
class Certificates:
    """Paths of PEM files: the authority to trust, and what a server named localhost loads."""

    authority: Path
    certificate: Path
    key: Path


def make_certificates(directory: Path) -> Certificates:
    """Make an authority in *directory*, and a certificate for "localhost" and no other name."""
    config = directory / "openssl.cnf"
    config.write_text(CONFIG)
    made = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    authority_key = directory / "ca.key"
    _openssl_req(config, "authority", made.authority, authority_key)
    signer = ["-CA", str(made.authority), "-CAkey", str(authority_key)]
    _openssl_req(config, "server", made.certificate, made.key, *signer)
    return made


def _openssl_req(config: Path, section: str, out: Path, key: Path, *more: str) -> None:
    command = ["openssl", "req", "-x509", "-config", str(config), "-extensions", section]
    command += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-out", str(out), "-keyout", str(key), *more]
    subprocess.run(command, check=True, capture_output=True)
