"""Stage 7: kernels, parameters and the entry become one module, or one native library."""
