"""Stage 9: sessions and inputs go in, timings and accuracy figures come out."""
