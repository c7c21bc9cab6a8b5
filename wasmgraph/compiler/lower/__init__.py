"""Stage 6: compiles scheduled ``PrimFunc``s to an object file of plain C functions over raw pointers."""
