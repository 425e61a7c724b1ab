"""Attention mechanisms, one file each, behind the identity gate that they share; `nas_attn.records` is their table."""
