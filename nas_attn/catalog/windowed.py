"""Mechanisms that attend within windows, to chosen windows or to displaced samples."""

from nas_attn.blueprint import ModuleRecord

RECORDS: tuple[ModuleRecord, ...] = ()
