"""Mechanisms that weigh positions, and channels with them, and large kernels."""

from nas_attn.blueprint import ModuleRecord

RECORDS: tuple[ModuleRecord, ...] = ()
