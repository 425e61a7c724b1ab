"""Mechanisms that weigh whole channels."""

from nas_attn.blueprint import ModuleRecord

RECORDS: tuple[ModuleRecord, ...] = ()
