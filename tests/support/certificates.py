"""A private certificate authority and what it has signed, made by the openssl command."""

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


def make_certificates(directory: Path, authority_days: int = 2) -> Certificates:
    """Make an authority in *directory*, and a certificate for "localhost" and no other name.

    That is good for two days, and the authority for *authority_days*.
    """
    config = directory / "openssl.cnf"
    config.write_text(CONFIG)
    made = Certificates(directory / "ca.pem", directory / "server.pem", directory / "server.key")
    new = ["req", "-x509", "-config", config, "-nodes"]
    new += ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    authority_key = directory / "ca.key"
    end = ["-days", authority_days]
    authority = ["-extensions", "authority", "-keyout", authority_key, "-out", made.authority]
    _openssl(*new, *end, *authority)
    signed = ["-CA", made.authority, "-CAkey", authority_key, "-days", 2]
    _openssl(*new, "-extensions", "server", *signed, "-keyout", made.key, "-out", made.certificate)
    return made


def make_revocation_list(made: Certificates) -> Path:
    """Make a list of the same authority, on which nothing stands."""
    directory = made.key.parent
    config, out = directory / "ca.cnf", directory / "crl.pem"
    (directory / "index.txt").touch()
    config.write_text(
        f"[ca]\ndefault_ca = it\n[it]\ndatabase = {directory}/index.txt\n"
        "default_md = sha256\ndefault_crl_days = 1\n"
    )
    signed = ["-cert", made.authority, "-keyfile", directory / "ca.key"]
    _openssl("ca", "-config", config, "-gencrl", *signed, "-out", out)
    return out


def make_expired(made: Certificates) -> Path:
    """Make a certificate of the same authority, for the same name and key, that is over."""
    directory = made.key.parent
    config, request, out = (directory / each for each in ("openssl.cnf", "server.csr", "old.pem"))
    _openssl("req", "-new", "-config", config, "-key", made.key, "-out", request)
    signed = ["-CA", made.authority, "-CAkey", directory / "ca.key", "-CAcreateserial"]
    signed += ["-extfile", config, "-extensions", "server"]
    _openssl("x509", "-req", "-in", request, *signed, "-days", -1, "-out", out)
    return out


def _openssl(*command: object) -> None:
    subprocess.run(["openssl", *map(str, command)], check=True, capture_output=True)
