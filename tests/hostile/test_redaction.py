"""No secret is left in a redacted text, and text without one stays as it is."""

from __future__ import annotations

import string
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffusion_inversion.engine.redaction import MASK, redact

SECRET = "Zq7vKp2mXw9tRb4nLc8yHd3g"
HF = f"hf_{SECRET}abcdefghij"
LETTERS = string.ascii_letters + string.digits
# Ways in which a secret § stands in a text.
CARRIERS = (
    "Authorization: Bearer §", "authorization: Basic §==", "{'Authorization': 'Bearer §'}", "proxy-authorization=§",
    "curl -H 'Bearer §'", "https://user:§@host/data", "https://§@huggingface.co/a/b", "socks5://u:§@10.0.0.1:80",
    "https://h/x?token=§&size=3", "https://h/x?size=3&key=§", "https://h/x?X-Amz-Signature=§",
    "https://h/x?X-Amz-Credential=§%2F2024&X-Amz-Date=1", "https://h/x?X-Goog-Signature=§#top", "https://h?Signature=§",
    "https://h/x?Expires=1&Signature=§&Key-Pair-Id=§&Policy=§", "https://h/x?sig=§", "https://h/x?access_token=§",
    "https://h/x?AWSAccessKeyId=§", "--token §", "--hf-token=§", "dinv run d --api-key § --out r", "-token '§'",
    "HF_TOKEN=§ dinv run", "export WANDB_API_KEY='§'", '{"token": "§", "n": 1}', "{'api_key': '§'}",
    "AWS_SECRET_ACCESS_KEY=§", "aws_access_key_id=§", "password=§", 'secret="§"', "client_secret=§", "MY_SECRET_KEY=§",
)  # fmt: skip
# What a message or command of a run looks like.
HARMLESS = (
    "/data/tokens/hf_cache/secret garden/001.png", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    "dinv run hf:uoft-cs/cifar10@main --out runs/tokens --seeds 0,1,2 --guidance-scale 1.5", "tokens=5, width=256",
    "key: was 3, now 4", "sorted by key=len", "the bearer of bad news", "basic classification", "tokenizer=clip",
    "runs/a/embeddings/units/shard-00000.safetensors: changed since it was written", "git@github.com:owner/name",
    "https://huggingface.co/stabilityai/stable-diffusion-2-1/resolve/main/unet/config.json?download=true",
    "C:\\keys\\token.txt", "label 3 names no class; policy=resize", "2024-11-22T13:44:37Z", "--token-count=", "",
    "class hf_dogs/0001-ab12cd-v003.png", "monkey=3 donkey=4", "Signature=verified",
)  # fmt: skip


@pytest.mark.parametrize("carrier", CARRIERS)
def test_a_secret_is_masked_wherever_it_stands(carrier: str) -> None:
    shown = redact(carrier.replace("§", SECRET))
    assert SECRET not in shown and MASK in shown
    assert redact(shown) == shown


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "token",
    [
        HF, "AKIAIOSFODNN7EXAMPLE", f"ghp_{SECRET}{SECRET}", f"github_pat_{SECRET}", f"sk-proj-{SECRET}",
        f"glpat-{SECRET}", "xoxb-123456789012-abcdef", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0abc.{SECRET}",
    ],
)  # fmt: skip
@pytest.mark.parametrize("frame", ["{}", "a {} b", "'{}'", "/tmp/{}/x", "value={}", "{}\n", "[{}]", "(token {})"])
def test_tokens_that_say_what_they_are(token: str, frame: str) -> None:
    assert token not in redact(frame.format(token)) and MASK in redact(frame.format(token))


def test_only_the_secret_goes() -> None:
    url = f"https://user:{SECRET}@host/a/b.png?X-Amz-Date=1&X-Amz-Signature={SECRET}&size=3 is gone"
    assert redact(url) == f"https://{MASK}@host/a/b.png?X-Amz-Date=1&X-Amz-Signature={MASK}&size=3 is gone"
    assert redact(f"dinv run d --hf-token {SECRET} --out r") == f"dinv run d --hf-token {MASK} --out r"


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"])
@given(value=st.text(LETTERS + "+/=%_-", min_size=8, max_size=60), left=st.text(max_size=9), right=st.text(max_size=9))
@settings(max_examples=60, deadline=None)
def test_the_environment_s_secrets_are_masked(name: str, value: str, left: str, right: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name, value)
        shown = redact(f"{left}{value}{right}")
    assert value not in shown.replace(MASK, "")
    assert MASK in shown


def test_a_short_value_or_a_path_in_the_environment_is_no_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    monkeypatch.setenv("HF_TOKEN", "1")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "disabled-here")
    text = f"step 1 of 10 in {tmp_path}, disabled-here"
    assert redact(text) == text


@given(st.text(max_size=300))
@settings(max_examples=200, deadline=None)
def test_redacting_twice_changes_nothing_more(text: str) -> None:
    once = redact(text)
    assert redact(once) == once


@given(st.lists(st.sampled_from([*CARRIERS, *HARMLESS, "&", "?", "'", '"', "\n", MASK, "://", "@"]), max_size=12))
@settings(max_examples=200, deadline=None)
def test_it_is_stable_on_any_mixture(parts: list[str]) -> None:
    once = redact("".join(parts))
    assert redact(once) == once


@given(st.text("0123456789abcdef", min_size=64, max_size=64), st.text(LETTERS + "._- ", min_size=1, max_size=40))
@settings(max_examples=200, deadline=None)
def test_hashes_and_paths_stay(digest: str, name: str) -> None:
    text = f"/home/user/runs/digits/synthetic/{digest}.png: changed; sha256 {digest}"
    assert redact(text) == text
    assert redact(f"/data/images/{digest[:5]}/x.png") == f"/data/images/{digest[:5]}/x.png"


@pytest.mark.parametrize("unit", ["eyJ-", "://a", "token=", "--token ", "bearer ", "a_", "&key=", "authorization:"])
def test_it_is_fast_on_long_text(unit: str) -> None:
    start = time.process_time()
    redact(unit * (200_000 // len(unit)))
    assert time.process_time() - start < 5
