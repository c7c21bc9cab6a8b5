"""The binary format of WebAssembly: modules and their instructions."""
