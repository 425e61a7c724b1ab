"""Blocks of convolutions that follow a layer as a whole."""

from nas_attn.blueprint import ModuleRecord

RECORDS: tuple[ModuleRecord, ...] = ()
