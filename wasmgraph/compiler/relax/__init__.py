"""Stage 3: Relax to Relax: layout, folding, fusion."""
