"""Lead from a canonical graph to kernel calls: layouts, templates, fused loop nests, decisions."""
