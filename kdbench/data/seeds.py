"""Random numbers that depend on what they are for, never on what was drawn before, nor on the device."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch


def seed_of(*parts: Any) -> int:
    """A 63-bit seed from JSON-ready values."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(*parts: Any) -> torch.Generator:
    """A CPU generator seeded from JSON-ready values."""
    return torch.Generator().manual_seed(seed_of(*parts))
