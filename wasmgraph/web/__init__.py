"""What a browser needs: ``loader.mjs``, an ES module that loads and runs a wasm graph."""
