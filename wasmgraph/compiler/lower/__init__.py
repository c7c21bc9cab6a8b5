"""Stage 6: scheduled ``PrimFunc``s become an object of plain C functions over raw pointers."""
