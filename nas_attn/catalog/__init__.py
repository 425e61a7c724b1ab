"""The records of all mechanisms, a file a family; `nas_attn.records` joins them into one table."""
