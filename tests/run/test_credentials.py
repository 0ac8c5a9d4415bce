"""C2PA: what `--c2pa-certificate` signs is read back by c2pa's own reader; what cannot sign is named at once."""

from __future__ import annotations

import datetime
import io
import json
import sys
from pathlib import Path
from typing import Any

import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image
from pydantic import ValidationError

from diffusion_inversion.config.commands import ExportSettings
from diffusion_inversion.errors import UsageError
from diffusion_inversion.run.export.credentials import signer
from diffusion_inversion.run.export.stage import export
from diffusion_inversion.sample.png import encode_png
from diffusion_inversion.sample.xmp import GENERATED


def certificate(name: str, key: Any, issuer: str, issuers_key: Any, *, authority: bool) -> bytes:
    def named(text: str) -> x509.Name:
        called = (NameOID.COMMON_NAME, text), (NameOID.ORGANIZATION_NAME, "A test")
        return x509.Name([x509.NameAttribute(*one) for one in called])

    begin = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=1)
    usage = dict.fromkeys(
        (
            "digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
            "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    usage |= {"key_cert_sign": True} if authority else {"digital_signature": True}
    made = (
        x509.CertificateBuilder(named(issuer), named(name), key.public_key(), x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + datetime.timedelta(days=30))
        .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**usage), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_key.public_key()), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
    )
    return made.sign(issuers_key, hashes.SHA256()).public_bytes(Encoding.PEM)


def pem(key: Any, encryption: KeySerializationEncryption | None = None) -> bytes:
    found: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, encryption or NoEncryption())
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a key, its certificate and chain, an authority that signed itself, and what is no use."""
    folder = tmp_path_factory.mktemp("keys")
    key, above = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())
    authority = certificate("Root", above, "Root", above, authority=True)
    files = {
        "key.pem": pem(key),
        "chain.pem": certificate("Signer", key, "Root", above, authority=False) + authority,
        "above.pem": pem(above),
        "root.pem": authority,
        "locked.pem": pem(key, BestAvailableEncryption(b"word")),
        "odd.pem": pem(ec.generate_private_key(ec.SECP256K1())),
        "junk.pem": b"\0junk",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def read(png: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(c2pa.Reader("image/png", io.BytesIO(png)).json())
    return found


def test_signed_images_are_valid_until_a_pixel_changes(run: Path, made: Path, tmp_path: Path) -> None:
    keys = {"c2pa_certificate": made / "chain.pem", "c2pa_key": made / "key.pem"}
    export(run, ExportSettings(to="imagefolder", out=tmp_path / "out", source_ids="plain", **keys))
    files = sorted((tmp_path / "out").glob("*/*.png"))
    assert len(files) == 24
    for file in files:
        png = file.read_bytes()
        found = read(png)
        assert found["validation_state"] == "Valid"  # "Trusted" takes a certificate of C2PA's list
        manifest = found["manifests"][found["active_manifest"]]
        (action,) = next(one for one in manifest["assertions"] if one["label"] == "c2pa.actions.v2")["data"]["actions"]
        assert (action["action"], action["digitalSourceType"]) == ("c2pa.created", GENERATED)
        assert manifest["signature_info"]["common_name"] == "Signer"
        own = Image.open(run / "synthetic" / file.relative_to(tmp_path / "out"))
        opened = Image.open(io.BytesIO(png))
        assert np.array_equal(np.asarray(opened), np.asarray(own)) and b"DigitalSourceType" in opened.info["xmp"]
    damaged = bytearray(png)
    damaged[png.index(b"IDAT") + 8] ^= 1
    assert read(bytes(damaged))["validation_state"] == "Invalid"
    unmarked = png.replace(b"trainedAlgorithmicMedia</Iptc4xmpExt", b"digitalCaptureeeeeeeeee</Iptc4xmpExt")
    assert len(unmarked) == len(png) and unmarked != png and read(unmarked)["validation_state"] == "Invalid"


@pytest.mark.parametrize(
    ("certificates", "key", "cause"),
    [
        ("root.pem", "above.pem", r"root\.pem: c2pa cannot sign with it \(.*self-signed"),
        ("chain.pem", "above.pem", r"above\.pem: not the key of .*chain\.pem"),
        ("chain.pem", "locked.pem", r"locked\.pem: not a private key in PEM, without a password"),
        ("chain.pem", "junk.pem", r"junk\.pem: not a private key in PEM"),
        ("junk.pem", "key.pem", r"junk\.pem: not a certificate in PEM"),
        ("absent.pem", "key.pem", r"absent\.pem: not a certificate in PEM"),
        ("chain.pem", "odd.pem", r"not the key of"),
    ],
)
def test_what_cannot_sign_is_named_before_any_image(
    finished: Path, made: Path, tmp_path: Path, certificates: str, key: str, cause: str
) -> None:
    keys = {"c2pa_certificate": made / certificates, "c2pa_key": made / key}
    with pytest.raises(UsageError, match=cause):
        export(finished, ExportSettings(to="fiftyone", out=tmp_path / "out", source_ids="plain", **keys))
    assert not (tmp_path / "out").exists()


def test_a_certificate_without_its_key_and_a_missing_extra(
    finished: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValidationError, match="give both or none"):
        ExportSettings(to="parquet", out=tmp_path, c2pa_key=made / "key.pem")
    keys = {"c2pa_certificate": made / "chain.pem", "c2pa_key": made / "key.pem"}
    with pytest.raises(UsageError, match="--c2pa-key: of images; leave it out with --to safetensors"):
        export(finished, ExportSettings(to="safetensors", out=tmp_path / "out", **keys))
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(UsageError, match=r"c2pa-python is missing; in a clone: pip install .*\[c2pa\]"):
        export(finished, ExportSettings(to="parquet", out=tmp_path / "out", **keys))


def test_signing_asks_no_network(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a time stamp and a look at revocations: a proxy that is nowhere is not missed."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    import torch

    png = signer(made / "chain.pem", made / "key.pem")(encode_png(torch.zeros(3, 4, 4, dtype=torch.uint8)))
    assert read(png)["validation_state"] == "Valid"
