"""Mechanisms in which every position can see the whole map."""

from nas_attn.blueprint import ModuleRecord

RECORDS: tuple[ModuleRecord, ...] = ()
