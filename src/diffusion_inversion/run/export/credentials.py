"""Content Credentials: a manifest of C2PA in each PNG, signed with the user's certificate. Nothing asks the network."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ...errors import UsageError, how_to_install
from ...sample.png import encode_png
from ...sample.xmp import GENERATED

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes


def signer(certificate: Path, key: Path) -> Callable[[bytes], bytes]:
    """What makes of a PNG a signed one that says that a model made it.

    certificate: PEM, the signer's certificate first, then those above it. key: PEM, not encrypted.
    No time is stamped: that takes a server. Raises UsageError where the extra is missing, a file is not that, or
    c2pa cannot sign with them; an image is signed to find out.
    """
    try:
        import c2pa
    except ImportError as error:
        raise UsageError(f"--c2pa-certificate: the package c2pa-python is missing; {how_to_install('c2pa')}") from error
    chain, private, algorithm = _read(certificate, key)
    context = c2pa.Context.from_dict({"builder": {"thumbnail": {"enabled": False}}})
    manifest = json.dumps(
        {
            "claim_generator_info": [{"name": "diffusion-inversion", "version": version("diffusion-inversion")}],
            "format": "image/png",
            "assertions": [
                {
                    "label": "c2pa.actions.v2",
                    "data": {"actions": [{"action": "c2pa.created", "digitalSourceType": GENERATED}]},
                }
            ],
        }
    )

    def sign(png: bytes) -> bytes:
        signed = io.BytesIO()
        c2pa.Builder(manifest, context=context).sign(made, "image/png", io.BytesIO(png), signed)
        return signed.getvalue()

    try:
        made = c2pa.Signer.from_info(c2pa.C2paSignerInfo(algorithm, chain, private, None))
        sign(encode_png(torch.zeros(3, 1, 1, dtype=torch.uint8)))
    except c2pa.C2paError as error:
        cause = " ".join(str(error).split())
        raise UsageError(
            f"--c2pa-certificate {certificate}: c2pa cannot sign with it ({cause}). It takes a certificate that "
            "another one signed, with the key usage digitalSignature and an extended one such as emailProtection."
        ) from error
    return sign


def _read(certificate: Path, key: Path) -> tuple[bytes, bytes, bytes]:
    """The chain, the key as PKCS 8, and the name that C2PA has for its algorithm."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
        PublicFormat,
        load_pem_private_key,
    )

    try:
        chain = certificate.read_bytes()
        first = x509.load_pem_x509_certificates(chain)[0]
    except (OSError, ValueError) as error:
        raise UsageError(f"--c2pa-certificate {certificate}: not a certificate in PEM ({error}).") from error
    try:
        private = load_pem_private_key(key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(f"--c2pa-key {key}: not a private key in PEM, without a password ({error}).") from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if private.public_key().public_bytes(*form) != first.public_key().public_bytes(*form):
        raise UsageError(f"--c2pa-key {key}: not the key of {certificate}, whose first certificate must be its own.")
    algorithm = _algorithm(private)
    if not algorithm:
        raise UsageError(f"--c2pa-key {key}: C2PA takes keys of P-256, P-384, P-521, RSA or Ed25519.")
    return chain, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), algorithm


def _algorithm(private: PrivateKeyTypes) -> bytes:
    """C2PA 2.1, section 13.2.1; b"" for a key that it does not allow."""
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(private, ec.EllipticCurvePrivateKey):
        return {"secp256r1": b"es256", "secp384r1": b"es384", "secp521r1": b"es512"}.get(private.curve.name, b"")
    if isinstance(private, rsa.RSAPrivateKey):
        return b"ps256"
    return b"ed25519" if isinstance(private, ed25519.Ed25519PrivateKey) else b""
