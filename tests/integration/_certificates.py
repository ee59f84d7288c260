"""Make a certificate authority and a server certificate for loopback, with openssl."""

from __future__ import annotations

import ssl
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files: the authority that clients trust, the server's certificate, its PKCS#8 key."""

    authority: Path
    certificate: Path
    key: Path

    def server_context(self) -> ssl.SSLContext:
        """Return a TLS context for a server that shows this certificate."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context


def make_certificates(folder: Path) -> Certificates:
    """Create an authority and a certificate for localhost and 127.0.0.1, valid for a day."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    authority_key, request = folder / "ca.key", folder / "server.csr"
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n", encoding="ascii")
    new_key = ["-newkey", "rsa:2048", "-nodes"]
    _openssl(
        ["req", "-x509", *new_key, "-days", "1", "-subj", "/CN=riskstream test authority"],
        ["-keyout", str(authority_key), "-out", str(made.authority)],
    )
    _openssl(
        ["req", *new_key, "-subj", "/CN=localhost"],
        ["-keyout", str(made.key), "-out", str(request)],
    )
    _openssl(
        ["x509", "-req", "-days", "1", "-in", str(request), "-extfile", str(extensions)],
        ["-CA", str(made.authority), "-CAkey", str(authority_key), "-CAcreateserial"],
        ["-out", str(made.certificate)],
    )
    return made


def _openssl(*words: list[str]) -> None:
    command = ["openssl", *(word for group in words for word in group)]
    subprocess.run(command, check=True, capture_output=True)
