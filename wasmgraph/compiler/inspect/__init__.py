"""What is known of kernels beside their results: their text, their work, the machine's limits."""
