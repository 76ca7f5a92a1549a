"""Signatures of webhooks, as Standard Webhooks (standardwebhooks.com) has them: HMAC-SHA256 over id, time and body.

Owns how a tenant's secret follows from the server's. Knows nothing of what is signed.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Secrets:
    """The tenants' secrets. `given`: the server's own, the newest first; without one, `made` tells what was made for
    all processes, and blocks: call both methods in a thread."""

    given: Sequence[str]
    made: Callable[[], str]

    def of(self, tenant: str) -> str:
        """What this tenant checks signatures with: `whsec_` and base64."""
        return f"whsec_{base64.b64encode(self._keys(tenant)[0]).decode()}"

    def headers(self, tenant: str, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        """What goes along with the body; a signature with each of the server's secrets, so that one can be replaced."""
        signed = f"{message_id}.{timestamp}.".encode() + body
        signatures = [hmac.digest(key, signed, "sha256") for key in self._keys(tenant)]
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in signatures),
        }

    def _keys(self, tenant: str) -> list[bytes]:
        masters = self.given or [self.made()]
        return [hmac.digest(master.encode(), f"webhooks of {tenant}".encode(), hashlib.sha256) for master in masters]
