"""Lead from scheduled kernels to a linked library: memory plan, C tables, LLVM, link, checks."""
