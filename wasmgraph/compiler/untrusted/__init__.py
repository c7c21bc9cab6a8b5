"""Importing and compiling in a child process with limits."""
