"""Certificates for tests of TLS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme
from cryptography.hazmat.primitives import serialization

from service.settings import Tls


@dataclass(frozen=True)
class Identity:
    """A certificate for `localhost` with its key.

    Attributes:
        tls: both, as files.
        authority: file of the certificate that the other side has to trust.
        locked_key: file of the key, encrypted.
    """

    tls: Tls
    authority: Path
    locked_key: Path

    def renew(self) -> None:
        """Replace certificate and key by others, of another authority, whose file is replaced too."""
        issue(self.authority.parent)


def issue(folder: Path) -> Identity:
    """Make one; its files go into the folder."""
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    made = Identity(Tls(folder / "tls.crt", folder / "tls.key"), folder / "ca.crt", folder / "locked.key")
    made.tls.certificate.write_bytes(b"".join(part.bytes() for part in issued.cert_chain_pems))
    made.tls.key.write_bytes(issued.private_key_pem.bytes())
    made.authority.write_bytes(authority.cert_pem.bytes())
    made.locked_key.write_bytes(
        serialization.load_pem_private_key(issued.private_key_pem.bytes(), None).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"peel"),
        )
    )
    return made
