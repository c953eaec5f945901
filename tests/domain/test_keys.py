"""Public keys come from others: their size is limited before they are parsed."""

from __future__ import annotations

import pytest

from registry.attestations.keys import KEY_LIMIT_BYTES, PrivateKey, PublicKey
from registry.errors import Invalid


def test_a_public_key_beyond_the_limit_is_refused_unread() -> None:
    pem = PrivateKey.of_seed(b"7" * 32).public.pem.encode()
    assert PublicKey.parse(pem + b"\n" * (KEY_LIMIT_BYTES - len(pem))).pem.encode() == pem
    with pytest.raises(Invalid, match=f"over {KEY_LIMIT_BYTES} bytes"):
        PublicKey.parse(pem + b"\n" * (KEY_LIMIT_BYTES - len(pem) + 1))
