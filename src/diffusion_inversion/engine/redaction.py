"""Secrets never reach a log: tokens, passwords and signatures in any text are masked before it is shown or stored."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

MASK = "[redacted]"
_SHORTEST = 8  # characters of an environment variable's value that is searched for; "1" would mask half a text
# Variables whose values are secrets, and every other one whose name ends like theirs.
_SECRET_NAME = re.compile(
    r"(^|_)(TOKEN|API_?KEY|SECRET(_ACCESS)?(_KEY)?|ACCESS_KEY(_ID)?|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE
)
# Names of options, keys and query parameters that carry one: --hf-token ..., "api_key": ..., MY_TOKEN=...
_NAMES = (
    r"x-(?:amz|goog)-(?:signature|credential|security-token)|(?:[a-z0-9]+[-_])*(?:token|secret|password|passwd)"
    r"|(?:[a-z0-9]+[-_])*(?:api|access|auth|secret)[-_]?(?:key|key[-_]id)|awsaccesskeyid"
)
# Names that are secret in a query alone; elsewhere they are everyday words.
_QUERY_NAMES = r"signature|sig|key|key-pair-id|policy|pwd|credential"
# A value goes on until one of the characters that follow it in URLs, JSON and prose.
_VALUE = r"(?!\[redacted\])[^\s\"'<>&;#,\])}]+"
_PATTERNS = tuple(
    (re.compile(pattern, re.IGNORECASE), mask)
    for pattern, mask in (
        # user:password@ and token@ in a URL
        (r"(?<=://)[^\s/@\"'<>?#]+@", f"{MASK}@"),
        # Authorization: Bearer ..., and the scheme alone
        (
            r"(\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?)(?:(?:bearer|basic|token)\s+)?[^\s\"',;]+",
            rf"\1{MASK}",
        ),
        (r"(\b(?:bearer|basic)\s+)(?=[\w.~+/-]*\d)[\w.~+/-]{16,}=*", rf"\1{MASK}"),
        (rf"([?&](?:{_QUERY_NAMES})=){_VALUE}", rf"\1{MASK}"),
        (rf"((?<![a-z0-9_-])(?:{_NAMES})(?:=|[\"']\s*[:=]\s*)[\"']?){_VALUE}", rf"\1{MASK}"),
        (rf"((?<!\S)--?(?:{_NAMES})[\s=]+[\"']?)(?!-)[^\s\"']+", rf"\1{MASK}"),
    )
) + tuple(
    (re.compile(rf"(?<![A-Za-z0-9])(?:{pattern})"), MASK)
    for pattern in (
        # Tokens that say what they are, wherever they stand: Hugging Face, AWS, GitHub, GitLab, OpenAI style, Slack
        r"(?:hf|api_org)_[A-Za-z0-9]{20,}",
        r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}(?![A-Za-z0-9])",
        r"gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}",
        r"sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[A-Za-z0-9-]{10,}",
        # JSON web tokens: two base64 objects and a signature
        r"eyJ[\w-]{8,4000}\.eyJ[\w-]{8,4000}\.[\w-]*",
    )
)


def redact(text: str) -> str:
    """`text` with every secret in it replaced by `[redacted]`; other text, paths and hashes as they are.

    Secrets are the values of environment variables named like one (HF_TOKEN, WANDB_API_KEY, AWS_SECRET_ACCESS_KEY),
    plain or as a URL writes them, and what has the form of one: a Hugging Face, AWS, GitHub or web token, an
    Authorization header, a password in a URL, a signed query. Redacting twice changes nothing more.
    """
    for value in _secrets():
        text = text.replace(value, MASK)
    for pattern, mask in _PATTERNS:
        text = pattern.sub(mask, text)
    return text


def _secrets() -> list[str]:
    """Values to search for, longest first, so that no part of one is left."""
    values = {
        value.strip()
        for name, value in os.environ.items()
        if _SECRET_NAME.search(name) and len(value.strip()) >= _SHORTEST and not os.path.exists(value.strip())
    }
    values |= {quote(value, safe="", errors="surrogateescape") for value in values}
    return sorted((value for value in values if value not in MASK), key=lambda value: (-len(value), value))
