"""Certificates for tests of TLS."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KEY_PASSWORD: Final = "open-sesame"  # noqa: S105


@dataclass(frozen=True)
class Certificates:
    """A CA that signed a server (for localhost alone) and a client, and a CA that signed nothing.

    `server` is key and certificate in one file.
    """

    ca: Path
    server: Path
    client: Path
    client_key: Path
    other_ca: Path


def make(folder: Path) -> Certificates:
    """Make them with the `openssl` command."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    def signed(name: str, *extensions: str) -> None:
        (folder / f"{name}.ext").write_text("\n".join(extensions))
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]
        openssl("req", "-new", *key, "-subj", f"/CN={name}", "-out", f"{name}.csr")
        ca = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        openssl("x509", "-req", "-in", f"{name}.csr", *ca, "-extfile", f"{name}.ext", "-out", f"{name}.pem")

    for name in ("ca", "other"):
        usage = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign"]
        key = ["-newkey", "rsa:2048", "-nodes", "-keyout", f"{name}.key"]
        openssl("req", "-x509", *key, "-subj", f"/CN={name}", "-days", "2", *usage, "-out", f"{name}.pem")
    usage = "authorityKeyIdentifier=keyid"
    signed("server", "subjectAltName=DNS:localhost", "extendedKeyUsage=serverAuth", usage)
    signed("client", "extendedKeyUsage=clientAuth", usage)
    locked = ["-passout", f"pass:{KEY_PASSWORD}", "-out", "client.locked"]
    openssl("pkcs8", "-topk8", "-in", "client.key", *locked)
    # Kafka reads a PEM key store from one file.
    (folder / "server.store").write_text((folder / "server.key").read_text() + (folder / "server.pem").read_text())
    return Certificates(
        ca=folder / "ca.pem",
        server=folder / "server.store",
        client=folder / "client.pem",
        client_key=folder / "client.locked",
        other_ca=folder / "other.pem",
    )
