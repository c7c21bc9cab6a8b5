"""Stage 7: links kernels, parameters and the entry into one module, or one native library."""
